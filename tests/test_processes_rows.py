"""Two processes that each give their own rows of a batch hold one batch together: what one process would hold."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np

PROGRAM = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
from configs.errors import UserError
from configs.schema import Mesh
from models.sharding import global_rows, make_mesh
batch = {"tokens": np.arange(24, dtype=np.int32).reshape(8, 3)}
own = {name: rows.reshape(2, 4, 3)[jax.process_index()] for name, rows in batch.items()}
whole = global_rows(own, make_mesh(Mesh(2, 1, 2)))["tokens"]
held = {shard.index[0].start: np.asarray(shard.data).tolist() for shard in whole.addressable_shards}
weighed = jax.jit(lambda rows: (rows * jnp.arange(1, 9)[:, None]).sum(axis=0))(whole)
try:
    make_mesh(Mesh(1, 1, 4))
except UserError as error:
    refused = str(error)
with open(sys.argv[3], "w") as told:  # the collectives' library writes on standard output when it likes
    json.dump([whole.shape, held, np.asarray(weighed).tolist(), refused], told)
"""


def test_one_batch_of_two_processes(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, address, str(number), tmp_path / f"{number}.json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=Path(__file__).parent.parent,
        )
        for number in range(2)
    ]
    try:
        ended = [process.communicate(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], ended
    batch = np.arange(24).reshape(8, 3)
    for number in range(2):
        shape, held, weighed, refused = json.loads((tmp_path / f"{number}.json").read_text())
        assert shape == [8, 3]
        assert held == {str(4 * number): batch[4 * number : 4 * number + 4].tolist()}
        assert weighed == (batch * np.arange(1, 9)[:, None]).sum(axis=0).tolist()
        assert "data x fsdp a multiple of the 2 processes" in refused
