"""The data pipelines: prompts, responses, features, batches."""
