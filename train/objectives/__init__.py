"""What a drafter is trained for: one file a kind."""
