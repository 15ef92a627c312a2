"""Two processes that each give their own rows of a batch hold one batch together: what one process would hold; where a
tensor axis spans them they give the same rows. What lies whole in both can be laid over them."""

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
from models.sharding import global_rows, make_mesh, on_host, own_mesh, part_of_rows, same_rows, shard, ways
from tests.tiny import make_target
batch = {"tokens": np.arange(24, dtype=np.int32).reshape(8, 3)}
own = {name: rows.reshape(2, 4, 3)[jax.process_index()] for name, rows in batch.items()}
whole = global_rows(own, make_mesh(Mesh(2, 1, 2)))["tokens"]
held = {shard.index[0].start: np.asarray(shard.data).tolist() for shard in whole.addressable_shards}
weighed = jax.jit(lambda rows: (rows * jnp.arange(1, 9)[:, None]).sum(axis=0))(whole)
parts = [part_of_rows(make_mesh(Mesh(*sizes))) for sizes in ((2, 1, 2), (4, 1, 1), (1, 1, 4))]
spanning = on_host(global_rows(batch, make_mesh(Mesh(1, 1, 4)))["tokens"])
same = on_host(same_rows(batch, make_mesh(Mesh(2, 2, 1)))["tokens"])
target, alone = make_target(num_layers=1, vocab_size=64), make_target(num_layers=1, vocab_size=64)
shard(target, own_mesh(Mesh(1, 2, 2)))
own = target.mesh.shape["tensor"], len(target.mesh.local_devices)
shard(target, make_mesh(Mesh(1, 2, 2)))
laid = [on_host(one.layers[0].gate[...]).tolist() for one in (target, alone)]
try:
    make_mesh(Mesh(1, 1, 2))
except UserError as error:
    refused = str(error)
with open(sys.argv[3], "w") as told:  # the collectives' library writes on standard output when it likes
    found = [whole.shape, held, np.asarray(weighed).tolist(), parts, spanning.tolist(), same.tolist(), refused]
    json.dump([*found, own, ways("embed", target.mesh), laid[0] == laid[1]], told)
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
        shape, held, weighed, parts, spanning, same, refused, *laid = json.loads(
            (tmp_path / f"{number}.json").read_text()
        )
        assert shape == [8, 3]
        assert held == {str(4 * number): batch[4 * number : 4 * number + 4].tolist()}
        assert weighed == (batch * np.arange(1, 9)[:, None]).sum(axis=0).tolist()
        assert parts == [[number, 2], [number, 2], [0, 1]]
        assert spanning == same == batch.tolist()
        assert refused.endswith("expected all 4 devices of the 2 processes")
        assert laid == [[2, 2], 2, True]
