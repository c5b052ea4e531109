"""The operator in parallel, sharded, checkpointed and compiled training: always the gradients of plain training."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from golden import image
from internimage import InternImage
from machine import BACKENDS, device_of
from ops_dcnv3 import DCNv3, dcnv3

# Two gloo processes share their tensors through main memory.
ON_CPU = [backend for backend in BACKENDS if device_of(backend) == "cpu"]


def make_layer(backend="auto"):
    torch.manual_seed(0)
    layer = DCNv3(16, group=2, backend=backend)
    # Offsets and logits that depend on the input, so that every parameter gets a gradient.
    torch.nn.init.normal_(layer.offset.weight, std=0.5)
    torch.nn.init.normal_(layer.mask.weight, std=0.5)
    return layer


def gradients(module, x):
    """Gradients of a loss by parameter name; averaged over images, so that halves of a batch average to the whole."""
    module(x).square().mean().backward()
    return {name: parameter.grad for name, parameter in module.named_parameters()}


BATCH = image(4, 7, 6, 16, seed=1)


def process(rank, folder):
    """One of two processes, each with half of the batch."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    half = BATCH[2 * rank : 2 * rank + 2]
    results = {}
    for backend in ON_CPU:
        replicated = gradients(DistributedDataParallel(make_layer(backend)), half)
        results["ddp", backend] = {name.removeprefix("module."): grad for name, grad in replicated.items()}
        sharded = gradients(fully_shard(make_layer(backend), mesh=init_device_mesh("cpu", (2,))), half)
        results["fsdp", backend] = {name: grad.full_tensor() for name, grad in sharded.items()}
    if rank == 0:
        torch.save(results, f"{folder}/grads.pt")
    dist.barrier()  # gloo may abort a process whose peer has gone first
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def parallel_gradients(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("parallel"))
    mp.spawn(process, (folder,), nprocs=2)
    return torch.load(f"{folder}/grads.pt")


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
def test_two_processes_get_the_gradients_of_one(parallel_gradients, wrapper, backend):
    expected = gradients(make_layer(backend), BATCH)
    actual = parallel_gradients[wrapper, backend]
    assert actual.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(actual[name], grad, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_the_layer_changes_no_gradient(reentrant, backend):
    layer = make_layer(backend).to(device_of(backend))
    x = BATCH.clone().to(device_of(backend)).requires_grad_()
    expected = gradients(copy.deepcopy(layer), x.detach())
    checkpoint(layer, x, use_reentrant=reentrant).square().mean().backward()
    for name, parameter in layer.named_parameters():
        # On a GPU atomic sums come in any order.
        exact = {} if x.is_cuda else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(parameter.grad, expected[name], **exact)
    assert x.grad.abs().max() > 0


def saved_bytes(model, images):
    sizes = {}

    def pack(tensor):
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(images).square().mean()
    loss.backward()
    return sum(sizes.values())


def test_checkpointing_a_model_changes_no_gradient_and_saves_memory():
    torch.manual_seed(0)
    model = InternImage(channels=16, depths=[2, 2, 2, 2], groups=[1, 2, 4, 8], num_classes=5)
    images = image(2, 3, 64, 64, seed=2)
    plain = saved_bytes(model, images)
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    model.set_grad_checkpointing()
    assert saved_bytes(model, images) < 0.5 * plain
    for parameter, grad in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_compiled_layer_has_no_graph_break_and_the_same_gradients(backend):
    layer, batch = make_layer(backend).to(device_of(backend)), BATCH.to(device_of(backend))
    expected = gradients(copy.deepcopy(layer), batch)
    actual = gradients(torch.compile(layer, fullgraph=True, backend="aot_eager"), batch)
    for name, grad in expected.items():
        torch.testing.assert_close(actual[f"_orig_mod.{name}"], grad, rtol=1e-4, atol=1e-6)


def test_inductor_fuses_what_stands_before_and_behind_the_operator():
    def operator(x, offset, mask):
        return dcnv3(x, 2 * offset, mask, groups=2, mask_is_logits=True).relu()

    tensors = [image(1, 7, 6, size, seed=size) for size in (16, 36, 18)]
    compiled = torch.compile(operator, fullgraph=True)
    torch.testing.assert_close(compiled(*tensors), operator(*tensors))


def test_a_compiled_operator_accepts_changing_sizes():
    layer = make_layer()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for size in (5, 8, 11):
        x = image(2, size, size + 1, 16, seed=size)
        torch.testing.assert_close(compiled(x), layer(x))
