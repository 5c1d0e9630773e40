"""Both ports under sslyze, a scanner of another project: versions, suites, curves, known holes."""

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ddib_fed.testing import NodeProcess, TwoNodes
from tests.e2e.harness import two_nodes

SSLYZE = os.environ.get("DDIB_SSLYZE") or shutil.which("sslyze")

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.promise("identity"),
    pytest.mark.skipif(SSLYZE is None, reason="sslyze is not installed: make tls-scan installs it and runs this"),
]  # fmt: skip

SUITES = {"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"}
"""Those of Mozilla's modern profile."""
CURVES = {"X25519", "secp256r1", "secp384r1", "secp521r1"}
"""As the profile, and P-521, which is not weak: gRPC has no setting for curves."""
OLDER = ("ssl_2_0", "ssl_3_0", "tls_1_0", "tls_1_1", "tls_1_2")


@pytest.fixture(scope="module")
def pair() -> Iterator[TwoNodes]:
    with tempfile.TemporaryDirectory(prefix="ddib-scan-") as folder, two_nodes(Path(folder)) as made:
        yield made


def scanned(node: NodeProcess, caller: Path | None, folder: Path) -> tuple[dict[str, Any], str]:
    """What sslyze finds at a node's port, and all that it says."""
    out = folder / "scan.json"
    own = () if caller is None else ("--cert", str(caller / "leaf.pem"), "--key", str(caller / "leaf.key"))
    trusted = ("--certinfo_ca_file", str(node.config.paths.pki / "roots.pem"))
    done = subprocess.run(
        [str(SSLYZE), "--mozilla_config", "modern", *own, *trusted, "--sni",
         f"node-1.{node.institution}", "--json_out", str(out), f"127.0.0.1:{node.port}"],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    (found,) = json.loads(out.read_text())["server_scan_results"]
    return found, done.stdout


def results(found: dict[str, Any]) -> dict[str, Any]:
    assert found["scan_status"] == "COMPLETED", found
    attempts = found["scan_result"].items()
    return {name: each["result"] for name, each in attempts if each["status"] != "NOT_SCHEDULED"}


@pytest.mark.parametrize("role", ["source", "target"])
def test_a_port_speaks_tls_13_with_strong_suites_alone(pair, role, tmp_path, evidence):
    """The source as its client sees it, the target as its peer: no older version, no weak suite, no known hole."""
    node = pair.source if role == "source" else pair.target
    caller = pair.profile.parent / "pki" if role == "source" else pair.source.config.paths.pki
    found, said = scanned(node, caller, tmp_path)
    of = results(found)
    for version in OLDER:
        assert of[f"{version}_cipher_suites"]["accepted_cipher_suites"] == [], version
    accepted = of["tls_1_3_cipher_suites"]["accepted_cipher_suites"]
    suites = {each["cipher_suite"]["name"] for each in accepted}
    assert suites
    assert suites <= SUITES
    curves = {each["name"] for each in of["elliptic_curves"]["supported_curves"]}
    assert curves <= CURVES
    holes = {
        "compression": of["tls_compression"]["supports_compression"],
        "CCS injection": of["openssl_ccs_injection"]["is_vulnerable_to_ccs_injection"],
        "Heartbleed": of["heartbleed"]["is_vulnerable_to_heartbleed"],
        "renegotiation": of["session_renegotiation"]["is_vulnerable_to_client_renegotiation_dos"],
        "ROBOT": of["robot"]["robot_result"].startswith("VULNERABLE"),
    }
    assert not any(holes.values()), holes
    against = said.rpartition("Not compliant.")[2]
    assert set(re.findall(r"(?m)^ +\* (\w+):", against)) <= {"certificate_path_validation", "tls_curves"}, (
        said
    )
    evidence.cases(len(OLDER) + len(holes) + len(suites) + len(curves))
    evidence.figure(f"{role}: TLS 1.3 with {', '.join(sorted(suites))}; {', '.join(sorted(curves))}")


@pytest.mark.parametrize("role", ["source", "target"])
def test_a_scanner_without_a_certificate_gets_no_connection(pair, role, tmp_path):
    """The handshake ends before anything is said."""
    found, _ = scanned(pair.source if role == "source" else pair.target, None, tmp_path)
    assert (found["connectivity_status"], found["scan_result"]) == ("ERROR", None)
