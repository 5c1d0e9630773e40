"""The commented node.toml that `ddib init node` writes."""

from __future__ import annotations

import json

from ddib_fed.datasets.synthetic import DOMAINS
from ddib_fed.node.config import ModelSection, NodeSection, Role, command_of
from ddib_fed.training.config import SHIPPED

_TEMPLATE = """\
# A ddib-fed node. Paths are relative to this file.
# `{command} check --config node.toml` says whether it can be used.

[node]
institution = "{institution}"   # DNS name of the institution; its certificates carry it
name = "{name}"
roles = [{roles}]               # "source" encodes for its own clients, "target" decodes for admitted peers
listen = "{listen}"             # address and port to bind
address = "{address}"           # what clients and peers dial
state = "state"                 # keys, peers, jobs, audit; keep it private and backed up
# proxy = "http://proxy.{institution}:3128"    # HTTP CONNECT proxy to all peers; https_proxy is never looked at
# proxy_login = "proxy.login"   # a file with USER:PASSWORD for it, mode 600

[model]
domain = "{domain}"             # the domain's name, as peers see it
bundle = {bundle:23} # manifest.json and model.safetensors; written by `{command} train`
{classifier:31} # folder of a classifier of noisy pictures, for requests that are guided by it
# scene = "512x512"             # HEIGHTxWIDTH of pictures, in overlapping tiles of the model's size; both nodes alike
{bundle_domain:31} # what the bundle calls its domain, where that is another name on purpose

[train]                         # the options of `ddib model train`, e.g. held_out for --held-out
{trained}
# steps = 2000                  # or time = "2h"; without either the preset's steps
# resume: the same command resumes a run that was stopped; --force starts it again
seed = 0

[limits]                        # the defaults; raise them only as far as the machine's memory goes
# max_points_per_item = 100000
# max_item_bytes = 67108864
# max_pixels = 89000000         # of one picture
# max_frames = 1                # of one file; a TIFF or PNG of several pictures is refused
# formats = ["PNG", "JPEG", "TIFF", "NPY"]  # of pictures that clients send
# max_items_per_job = 1000
# max_evaluations = 2000        # network evaluations of one leg, at most 10000
# max_open_jobs = 64            # source: unfinished jobs, and as many that wait for a peer; more are refused for now
# max_spool_bytes = 4294967296  # source: files of jobs; one client has five eighths of these and of open jobs
# max_staged_bytes = 2147483648 # source: of one client, files that are being received at once
# decode_memory_mib = 220       # source: what decoding or writing a picture may take
# stall_s = 60.0                # an upload whose next piece does not come within this is ended
# request_s = 20.0              # a call whose request does not come within this is ended
# idle_s = 300.0                # so is a stream whose caller, for so long, sends nothing, takes nothing of the answers,
#                                 or watches a job that does not move
# job_deadline_s = 86400.0      # source: a job is given up after this; only time in which the node runs counts
# result_days = 7.0             # source: results that nobody fetches are removed after this; the same
# max_streams = 64              # calls that stream at once, a share for each caller; each holds a thread
# max_streams_per_identity = 40 # of one client or peer: 16 jobs, submitted, watched and fetched at once
# drain_s = 60.0                # what runs has this long after SIGTERM

[engine]
# executor = "inline"           # or "processes": one for each GPU or core; or "ray": actors on your own Ray cluster
# workers = 0                   # of processes or ray; 0 for one on each GPU, without any on each core
# ray_address = ""              # "HOST:6379", the head of the Ray cluster; "local" starts one on this machine
# device = "auto"               # cpu, cuda, cuda:1; auto takes a GPU where there is one
# threads = 0                   # CPU threads of the network; 0 measures at start and keeps the fastest
# dtype = "float32"             # of the network; bfloat16 (error 1e-2 of deviation 1 in a latent of pictures, 2e-3 of
#                                 points) and float16 (7e-4, 1e-4; GPUs only) are less exact; the state stays float32
# compile = "auto"              # none, graphs (CUDA), compile (torch.compile); auto takes graphs on a GPU if they check
# merge_rows = 0                # points in one network call; 0 measures at the first start what is best
# merge_pixels = 0              # pictures: their pixels together; 0 measures
# max_trajectories = 64         # jobs and peers' calls that are integrated at once; more wait
# running_jobs = 24             # source: jobs worked on at once, of one client two thirds; small ones fill a batch

[policy]
# peers = {{ "*" = ["send", "decode", "calibrate"] }}  # what each admitted peer may be used for; "*" is the others
# clients = {{ "*" = ["*"] }}     # where each client may translate to, as {{ "alice" = ["south.example/relief"] }}
# least_soften_sigma = 0.0      # of pictures; models say how much they have
# round_trip = true             # target: encode the output again for a peer that asks for a cycle check
# least_depth = 1.0             # of a latent, in (0, 1]: less keeps structure, and some of the picture
# least_evaluations = 8         # of a latent that leaves or is decoded here; 0 for any number, flow maps are exempt
# encoders = ["ode"]            # also "mixed": latents that show more of the picture
# latent_types = ["float32"]    # also "float16", "bfloat16": half the bytes; a source prefers the first of its list
# max_guidance = 10.0           # largest --guidance; 0 for none
# max_classifier_scale = 10.0   # largest --classifier-scale; 0 for none
# calibration = []              # kinds that peers may agree on: "rotation", "tone", "colour-map"; none by default
# calibration_units = false     # target: tell peers that have anchors mean and deviation of the channels, not noised
# size_rule = "model"           # pictures of other sizes: fitted as the model's manifest says, or "refuse"
# evaluations_per_day = 20000000000  # target: quota of each peer, network evaluations x points or x pixels; 0 for none
# quotas = {{}}                   # target: the same for single peers, as {{ "south.example" = 1000000000000 }}
# samples_per_day = 0           # target: quota of each peer in points or pictures, 0 for none
# client_evaluations_per_day = 20000000000  # source: quota of each client, as evaluations_per_day
# weights = {{}}                  # shares of the engine, as {{ "south.example" = 2.0 }}; 1 for others and own clients

[identity]
# issuer = "node-1@issuer.north.example:7443"  # where another node of the institution issues the certificates
# renew_command = ["/usr/local/bin/renew"]     # or where a program of yours does
# node_life_s = 86400.0         # of the certificates that this node issues, at least 60; renewed after two thirds
# client_life_s = 2592000.0     # the same, of clients
# recovery_days = 30.0          # a node that renews here may be off for so long and come back by itself; 0 for never

[http]
# listen = "127.0.0.1:9464"     # /healthz, /readyz, /metrics; loopback only

[log]
# level = "info"                # debug, info, warning, error
# format = "text"               # or json, one object a line

[telemetry]                     # to the institution's own OpenTelemetry collector; needs the packages of the extra otel
# endpoint = "http://127.0.0.1:4318"  # OTLP over HTTP; https:// beyond loopback. Without it nothing is sent
# sample = 1.0                  # share of the traces that are recorded
# metrics_every_s = 60.0        # what /metrics shows is sent so often; 0 for traces alone
# peers = ["south.example"]     # trace ids go to and come from these, where they list this institution too
"""


_BUILT_IN = """\
domain = "{domain}"             # a built-in domain, or instead of it points or pictures of your own:
                                # data = "points.npy" of shape (N, D), or images = "FOLDER" with size = 64"""
_OWN = """\
# images = "pictures"           # the folder with the pictures of {domain}, or instead data = "points.npy", shape (N, D)
# size = 64                     # height and width for the network; both institutions need the same"""


def _trained(domain: str) -> str:
    built_in = domain in SHIPPED or domain in DOMAINS
    return (_BUILT_IN if built_in else _OWN).format(domain=domain)


def render_node_toml(
    *,
    institution: str,
    name: str,
    roles: tuple[Role, ...],
    domain: str,
    listen: str,
    address: str,
    bundle: str = "model",
    bundle_domain: str | None = None,
    classifier: str | None = None,
) -> str:
    """A commented node.toml that `NodeConfig.load` accepts."""
    NodeSection(institution=institution, name=name, roles=roles, listen=listen, address=address)
    ModelSection(domain=domain, bundle=bundle)
    command = command_of(roles)
    return _TEMPLATE.format(
        command=command,
        institution=institution,
        name=name,
        roles=", ".join(f'"{role}"' for role in roles),
        domain=domain,
        trained=_trained(domain),
        listen=listen,
        address=address,
        bundle=_string(bundle),
        classifier=f"classifier = {_string(classifier)}" if classifier else '# classifier = "classifier"',
        bundle_domain=f"bundle_domain = {_string(bundle_domain)}"
        if bundle_domain
        else '# bundle_domain = "imported"',
    )


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
