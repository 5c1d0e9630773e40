"""Messages with what the protocol does not know or allow, to and from running nodes; files of several pictures."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message
from PIL import Image

from benchmarks.trust.soundness import nodes
from benchmarks.trust.soundness.attack import Result, attack, ddib
from benchmarks.trust.soundness.memory import ddib_channel
from benchmarks.trust.soundness.nodes import peer_of, root_of
from benchmarks.trust.soundness.samples import photograph
from ddib_fed.latent import Latent
from ddib_fed.rpc.error_details import from_rpc_error
from ddib_fed.trust import tls
from ddib_fed.v1 import common_pb2, decoding_pb2_grpc
from ddib_fed.v1 import decoding_pb2 as pb
from ddib_fed.v1 import translation_pb2 as tpb
from ddib_fed.v1 import translation_pb2_grpc as trpc
from ddib_fed.wire.version import versions_to_pb
from tests.client.scripted_source import SourceNodeDouble, npy, points
from tests.node.institutions import Institution
from tests.node.tiny_nodes import npy as noise
from tests.source_node.hostile.test_hostile_target import FILE, reach
from tests.source_node.scripted_target import ScriptedTarget, instead
from tests.source_node.served import job_header

STRANGE = {
    "a text field": b"\xfa\x07\x03pix", "a number": b"\xf8\x07\x01", "eight bytes": b"\xf9\x07" + bytes(8),
    "a group": b"\xfb\x07\xfc\x07", "four bytes": b"\xfd\x07" + bytes(4),
    "a number field beyond all": b"\xf8\xff\xff\xff\x0f\x01",
}  # fmt: skip


@contextmanager
def west(folder: Path) -> Iterator[ScriptedTarget]:
    """A hostile institution that the running source has admitted."""
    pair, made = nodes.points(), Institution("west.example", folder / "west")
    made.store.add(peer_of(pair.north), fingerprints=[root_of(pair.north)])
    target = ScriptedTarget(made)
    (folder / "west.peer").write_bytes(made.peer(target.address).to_bytes())
    config = ("--config", pair.north.config_path)
    added = ddib("peer", "add", folder / "west.peer", "--fingerprint", made.peer().fingerprint, *config)
    assert added.code == 0, added.error
    try:
        yield target
    finally:
        ddib("peer", "remove", "west.example", *config)
        target.close()


def _merge(path: str, content: bytes) -> Callable[[Message], object]:
    def change(answer: Any) -> None:
        if path.split(".", maxsplit=1)[0] in {"", *answer.DESCRIPTOR.fields_by_name}:
            reach(answer, path).MergeFromString(content)

    return change


def _versions(count: int) -> Callable[[Any], object]:
    def change(answer: Any) -> None:
        if "versions" in answer.DESCRIPTOR.fields_by_name:
            del answer.versions[:]
            answer.versions.extend(versions_to_pb()[:1] * count)

    return change


def _set(path: str, value: Any) -> Callable[[Any], object]:
    def change(answer: Any) -> None:
        *inner, last = path.split(".")
        if (inner or [last])[0] in answer.DESCRIPTOR.fields_by_name:
            setattr(reach(answer, ".".join(inner)), last, value)

    return change


DESCRIPTIONS: dict[str, Callable[[Any], object]] = {
    **{f"{kind} in {path or 'the description'}": _merge(path, content)
       for path in ("", "versions.0", "side", "limits") for kind, content in list(STRANGE.items())[:2]},
    "no version": _versions(0), "20 versions": _versions(20), "evaluations of 0": _set("limits.max_evaluations", 0),
    "a lambda that is no number": _set("side.terminal_lambda", math.nan),
}  # fmt: skip
CONTRACTS: dict[str, Callable[[Any], object]] = {
    **{f"{kind} in {path}": _merge(path, content) for kind, content in STRANGE.items()
       for path in ("contract", "contract.limits")},
    "a field beside the contract": lambda answer: _merge("", STRANGE["a number"])(answer)
    if "contract" in answer.DESCRIPTOR.fields_by_name else None,
    "a version of its own": _set("contract.version.minor", 99),
    "limits of 0": _set("contract.limits.max_items_per_stream", 0),
}  # fmt: skip


@attack(
    15,
    "answers of a peer: unknown fields of six types in seven places, no or 20 versions, 0 evaluations",
    before="accepted in four places, against the protocol",
    test="tests/source_node/hostile/test_hostile_target.py::test_a_contract_with_a_field_that_nobody_knows_is_refused",
)
def answers(folder: Path, result: Result) -> None:
    pair = nodes.points()
    (folder / "p.npy").write_bytes(noise(40))
    profile = ("--profile", pair.profile)
    with west(folder) as target:
        for what, forge in DESCRIPTIONS.items():
            target.forge = forge
            said = ddib("domains", *profile)
            line = next((x for x in said.out.splitlines() if "west.example" in x), "")
            result.add(f"domains: {what}", line and "ready" not in line, said.code, " ".join(line.split()))
        for what, forge in CONTRACTS.items():
            target.forge = forge
            said = ddib("translate", folder / "p.npy", "--to", "west.example/checkerboards", "--evaluations", 8,
                        "--out", folder / "o", *profile)  # fmt: skip
            result.refused(f"contract: {what}", said, "west.example", codes=(3, 4, 11, 14))
        result.add("no latent left", not target.latents)


def _with(path: str, content: bytes) -> Callable[[ScriptedTarget, int, Latent], Iterator[pb.DecodeResponse]]:
    """An answer with bytes more in each message that has this path."""
    top = path.split(".", maxsplit=1)[0]

    def answer(target: ScriptedTarget, item: int, latent: Latent) -> Iterator[pb.DecodeResponse]:
        sent = [pb.DecodeResponse(progress=pb.DecodeProgress(item=item, stage="decode", step=1, steps=2))]
        sent += [*target.result(item, FILE), *target.latent(item, latent)]
        for each in sent:
            message = pb.DecodeResponse.FromString(each.SerializeToString())
            if top in {"", message.WhichOneof("message")}:
                reach(message, path).MergeFromString(content)
            yield message

    return answer


@attack(
    15,
    "results with such fields in every message of the stream and in each message inside it",
    before="accepted",
    test="tests/source_node/hostile/test_hostile_target.py"
    "::test_a_decoded_item_with_a_field_that_nobody_knows_is_refused",
)
def results(folder: Path, result: Result) -> None:
    pair = nodes.points()
    (folder / "p.npy").write_bytes(noise(40))
    with west(folder) as target:
        for number, path in enumerate(
            ("", "result", "result.file", "chunk", "trailer", "latent", "latent.tensor", "progress")
        ):
            content = list(STRANGE.values())[number % len(STRANGE)]
            target.decodes = [instead(0, _with(path, content))]
            out = folder / f"o{number}"
            said = ddib("translate", folder / "p.npy", "--to", "west.example/checkerboards", "--cycle",
                        "--evaluations", 8, "--out", out, "--profile", pair.profile)  # fmt: skip
            result.refused(path or "the message itself", said, "west.example", codes=(3, 11, 14))
            if list(out.glob("p.npy")):
                result.add(f"{path}: a result was written", held=False)


@attack(
    15,
    "requests to running nodes: fields that nobody knows, 0 and 2^31 evaluations, 0 items, no and 20 versions",
    before="`evaluations: 0`, zero or 20 versions passed",
    test="tests/wire/limits/test_fields.py::test_no_evaluations_are_no_setting",
)
def requests(folder: Path, result: Result) -> None:
    del folder
    pair = nodes.points()
    headers: dict[str, dict[str, Any]] = {
        "0 evaluations": {"solver": common_pb2.SolverSettings(evaluations=0)},
        "no solver": {"solver": None},
        "2^31 evaluations": {"solver": common_pb2.SolverSettings(evaluations=2**31)},
        "depth of 0.5 and nan": {"solver": common_pb2.SolverSettings(evaluations=8, depth=math.nan)},
        "an id of control characters": {"request_id": "a\nb"},
        "an endless deadline": {"deadline_s": math.inf},
    }
    with ddib_channel(pair.profile, pair.north.port) as channel:
        stub = trpc.TranslationServiceStub(channel)
        for what, changes in headers.items():
            try:
                header = job_header(1, target_domain="moons", **changes)
            except (ValueError, TypeError):
                continue
            _refused(
                result, f"client: {what}", lambda header=header: stub.SubmitJob(iter([header]), timeout=20)
            )
        _refused(result, "client: 0 items", lambda: stub.SubmitJob(iter([job_header(0)]), timeout=20))
        for kind, content in STRANGE.items():
            request = tpb.GetJobRequest(job_id="x")
            request.MergeFromString(content)
            _refused(
                result,
                f"client: {kind}",
                lambda request=request: stub.GetJob(request, timeout=20),
                "UNKNOWN_FIELDS",
            )
    south = nodes.points().south
    roots = (south.config.paths.pki / "ca.pem").read_bytes()
    with tls.channel(f"127.0.0.1:{south.port}", server_name="node-1.south.example",
                     pki_folder=pair.north.config.paths.pki, roots_pem=roots) as channel:  # fmt: skip
        decoding = decoding_pb2_grpc.DecodingServiceStub(channel)
        for count in (0, 20):
            request = pb.NegotiateContractRequest(versions=versions_to_pb()[:1] * count)
            _refused(
                result,
                f"peer: {count} versions",
                lambda request=request: decoding.NegotiateContract(request, timeout=20),
            )
        for what, solver in {
            "0 evaluations": common_pb2.SolverSettings(),
            "2^31": common_pb2.SolverSettings(evaluations=2**31),
        }.items():
            header = pb.DecodeRequest(
                header=pb.DecodeHeader(contract_sha256=bytes(32), request_id="r", items=1, solver=solver)
            )
            _refused(
                result,
                f"peer: {what}",
                lambda header=header: list(decoding.Decode(iter([header]), timeout=20)),
            )
        for kind, content in STRANGE.items():
            request = pb.NegotiateContractRequest(versions=versions_to_pb())
            request.MergeFromString(content)
            _refused(
                result,
                f"peer: {kind}",
                lambda request=request: decoding.NegotiateContract(request, timeout=20),
                "UNKNOWN_FIELDS",
            )


def _refused(result: Result, what: str, call: Callable[[], object], reason: str = "") -> None:
    """Note a call, which holds when it is refused with one of our reasons and no internal error."""
    try:
        call()
    except grpc.RpcError as raised:
        error = from_rpc_error(raised, "")
        good = error.reason not in {"INTERNAL", "UNAVAILABLE"} and reason in {"", error.reason}
        result.add(what, good, said=f"{error.reason}: {error.detail}")
    except Exception as error:  # noqa: BLE001 - refused on the way out is refused
        result.add(what, held=False, said=f"{type(error).__name__}: {error}")
    else:
        result.add(what, held=False, said="accepted")


def _several() -> dict[str, bytes]:
    """Files of more than one picture."""
    frames = [Image.fromarray(photograph(number)) for number in (1, 2)]
    made = {}
    for name, kind in (
        ("stereo.mpo", "MPO"),
        ("stereo.jpg", "MPO"),
        ("pages.tif", "TIFF"),
        ("moving.png", "PNG"),
        ("moving.gif", "GIF"),
    ):
        file, own = io.BytesIO(), [frame.copy() for frame in frames]  # Pillow keeps an encoder's settings
        own[0].save(file, kind, save_all=True, append_images=own[1:])
        made[name] = file.getvalue()
    one = io.BytesIO()
    frames[0].save(one, "JPEG")
    made["appended.jpg"] = one.getvalue() * 2
    plain = io.BytesIO()
    frames[0].save(plain, "PNG")
    made["appended-too.png"] = plain.getvalue() * 2
    return made


@attack(
    15,
    "files of two pictures: MPO as .mpo and .jpg, pages, animations, one file behind another",
    before="an MPO of two frames passed as its first",
    test="tests/samples/test_image_refusals.py::test_a_file_of_two_pictures_is_refused",
)
def several(folder: Path, result: Result) -> None:
    pair = nodes.pictures()
    for name, content in _several().items():
        (folder / name).write_bytes(content)
        said = ddib("translate", folder / name, "--to", nodes.SATELLITE, "--evaluations", 8, "--out", folder / "o",
                    "--profile", pair.profile)  # fmt: skip
        result.refused(name, said, name, codes=(3, 11))


@attack(
    15,
    "times that no calendar has in a node's answers: `ddib job show`, `list`, `watch` and `fetch`",
    before="`finished = 1e300` ended `job show` in a traceback",
    test="tests/client/test_hostile_source.py::test_job_show_ends_in_an_error_and_not_in_a_traceback",
)
def times(folder: Path, result: Result) -> None:
    double = SourceNodeDouble(folder)
    (folder / "p.npy").write_bytes(npy(points()))
    try:
        ddib(
            "job",
            "submit",
            folder / "p.npy",
            "--to",
            "south.example/checkerboards",
            "--profile",
            double.profile_path,
        )
        job = f"job-{double.script.seen('SubmitJob')[0].request_id[:8]}"
        plain = double.service._view  # noqa: SLF001 - the double has no other way to lie in a list
        for field in ("created", "finished", "expires"):
            for value in (1e300, -1.0, math.inf, math.nan, 9e15, 253402300800.0):

                def view(job_id: str, stored: Any, field: str = field, value: float = value) -> tpb.Job:
                    made = plain(job_id, stored)
                    setattr(made, field, value)
                    return made

                double.service._view = view  # noqa: SLF001
                for words in (
                    ("show", job),
                    ("show", job, "--format", "json"),
                    ("list",),
                    ("fetch", job, "--out", folder / "o"),
                ):
                    said = ddib("job", *words, "--profile", double.profile_path)
                    result.refused(f"{field} = {value}: job {words[0]}", said, codes=(3,))
    finally:
        double.stop()
