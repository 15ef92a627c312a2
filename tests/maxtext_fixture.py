"""MaxText's own converter on a tiny Hugging Face directory. Run by MaxText's environment, not by ours.

python tests/maxtext_fixture.py MODEL_NAME HUGGING_FACE_DIRECTORY OUT [key=value ...]

The converter knows the shapes of published models alone, so the tiny one takes the place of MODEL_NAME's.
"""

import os
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
os.environ["JAX_PLATFORMS"] = "cpu"

from pathlib import Path

import maxtext
import transformers
from maxtext.checkpoint_conversion import to_maxtext
from maxtext.checkpoint_conversion.utils.hf_model_configs import HF_MODEL_CONFIGS

name, directory, out, *settings = sys.argv[1:]
HF_MODEL_CONFIGS[name] = transformers.AutoConfig.from_pretrained(directory)
base = Path(maxtext.__file__).parent / "configs" / "base.yml"
common = [f"model_name={name}", f"base_output_directory={out}", "run_name=tiny", "override_model_config=true"]
place = ["hardware=cpu", "skip_jax_distributed_system=true", "hf_access_token=none"]
to_maxtext.main(
    ["to_maxtext", str(base), *common, *place, *settings],
    lazy_load_tensors=True,  # the eager way reads with torch
    hf_model_path=directory,
    save_dtype="float32",
    simulated_cpu_devices_count=4,
)
