import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from cryptography import x509

from finetuning_api.finetuningjob import AccessMode, Preset
from finetuning_operator.cluster.options import (
    GatewayRef,
    Options,
    OptionsError,
    Outside,
    ProgressOptions,
    StorageProfile,
)
from finetuning_operator.reconcile.plan import ImageRole, Settings
from finetuning_operator.reconcile.policy import Bounds, Mirrors, SourcePolicy


def _written(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_an_empty_environment_gives_defaults_that_work() -> None:
    options = Options.from_environment({})

    assert options == Options()
    assert (options.namespaces, options.health_port, options.api_qps, options.api_burst) == ((), 8080, 200.0, 400)
    assert set(options.images) == set(ImageRole)
    assert options.storage_profiles == {"default": StorageProfile()}
    assert options.lease_name == "finetuning-operator"
    assert options.trash_ttl_seconds == 7 * 24 * 3600


def test_every_variable_is_read(tmp_path: Path) -> None:
    certificate = _written(tmp_path, "tls.crt", "certificate")
    key = _written(tmp_path, "tls.key", "key")
    profiles = (
        "fast: {storageClassName: ssd, accessModes: [ReadWriteMany], defaultSize: 20Gi, minSize: 1Gi, maxSize: 1Ti}"
    )

    options = Options.from_environment(
        {
            "FINETUNING_NAMESPACES": "team-a, team-b,",
            "FINETUNING_IMAGE_RELOCATOR": "registry/relocator:1",
            "FINETUNING_IMAGE_TRAINER": "registry/trainer:1",
            "FINETUNING_IMAGE_EVALUATOR": "registry/evaluator:1",
            "FINETUNING_IMAGE_SERVER": "registry/server:1",
            "FINETUNING_IMAGE_PULL_POLICY": "Never",
            "FINETUNING_IMAGE_PULL_SECRETS": "pull",
            "FINETUNING_STORAGE_PROFILES": _written(tmp_path, "profiles.yaml", profiles),
            "FINETUNING_OPERATOR_NAMESPACE": "ml",
            "FINETUNING_PROGRESS_URL": "https://progress.ml.svc:8443/",
            "FINETUNING_PROGRESS_PORT": "9443",
            "FINETUNING_PROGRESS_CERTIFICATE": certificate,
            "FINETUNING_PROGRESS_KEY": key,
            "FINETUNING_PROGRESS_CA": _written(tmp_path, "ca.crt", "authority"),
            "FINETUNING_STATUS_DELAY": "0.5",
            "FINETUNING_RESYNC_SECONDS": "60",
            "FINETUNING_API_QPS": "20",
            "FINETUNING_API_BURST": "40",
            "FINETUNING_WORKERS": "4",
            "FINETUNING_HEALTH_PORT": "9090",
            "FINETUNING_LEASE_NAME": "",
            "FINETUNING_LEASE_SECONDS": "30",
            "FINETUNING_TRASH_TTL_SECONDS": "3600",
            "FINETUNING_STALL_SECONDS": "30",
            "FINETUNING_STALLED_AFTER_SECONDS": "120",
            "FINETUNING_SERVING_DOMAIN": "ai.example.org",
            "FINETUNING_SERVING_SCHEME": "http",
            "FINETUNING_GATEWAY": "edge/public",
            "FINETUNING_LOG_LEVEL": "DEBUG",
        }
    )

    assert options == Options(
        namespaces=("team-a", "team-b"),
        images={role: f"registry/{role.value}:1" for role in ImageRole},
        image_pull_policy="Never",
        image_pull_secrets=("pull",),
        storage_profiles={
            "default": StorageProfile(),
            "fast": StorageProfile(
                storage_class_name="ssd",
                access_modes=(AccessMode.READ_WRITE_MANY,),
                default_size="20Gi",
                min_size="1Gi",
                max_size="1Ti",
            ),
        },
        operator_namespace="ml",
        progress=ProgressOptions(
            url="https://progress.ml.svc:8443", port=9443, certificate=Path(certificate), key=Path(key), ca="authority"
        ),
        status_delay=0.5,
        resync_seconds=60.0,
        api_qps=20.0,
        api_burst=40,
        workers=4,
        health_port=9090,
        lease_name=None,
        lease_seconds=30,
        trash_ttl_seconds=3600,
        gateway=GatewayRef("edge", "public"),
        log_level="DEBUG",
        settings=Settings(
            stall_seconds=30, stalled_after_seconds=120, serving_domain="ai.example.org", serving_scheme="http"
        ),
    )


def test_servers_are_exposed_by_an_ingress_class_or_by_a_gateway() -> None:
    assert Options.from_environment({"FINETUNING_INGRESS_CLASS": "public"}).ingress_class == "public"
    assert Options.from_environment({}).gateway is None


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"FINETUNING_WORKERS": "many"}, "FINETUNING_WORKERS='many': give a whole number, for example 16"),
        ({"FINETUNING_WORKERS": "0"}, "FINETUNING_WORKERS='0': give a whole number of at least 1"),
        ({"FINETUNING_STATUS_DELAY": "nan"}, "FINETUNING_STATUS_DELAY='nan': give a number of at least 0"),
        ({"FINETUNING_API_QPS": "inf"}, "FINETUNING_API_QPS='inf': give a number of at least 1"),
        ({"FINETUNING_HEALTH_PORT": "70000"}, "FINETUNING_HEALTH_PORT='70000': give a port of at most 65535"),
        (
            {"FINETUNING_IMAGE_PULL_POLICY": "always"},
            "FINETUNING_IMAGE_PULL_POLICY='always': choose one of Always, IfNotPresent, Never",
        ),
        (
            {"FINETUNING_NAMESPACES": "team-a,Team_B"},
            "FINETUNING_NAMESPACES='Team_B': name lower-case DNS labels, separated by commas",
        ),
        (
            {"FINETUNING_PROGRESS_URL": "progress.ml.svc"},
            "FINETUNING_PROGRESS_URL='progress.ml.svc': give an https:// address that pods can reach",
        ),
        (
            {"FINETUNING_PROGRESS_URL": "https://progress.ml.svc", "FINETUNING_PROGRESS_CA": "/etc/hosts"},
            "FINETUNING_PROGRESS_CERTIFICATE='': name a file that exists",
        ),
        (
            {"FINETUNING_SERVING_DOMAIN": "https://ai"},
            "FINETUNING_SERVING_DOMAIN='https://ai': give lower-case letters, digits, '-' and '.'",
        ),
        ({"FINETUNING_SERVING_SCHEME": "tcp"}, "FINETUNING_SERVING_SCHEME='tcp': choose one of https, http"),
        (
            {"FINETUNING_WAKE_PORT": "8090", "FINETUNING_POD_IP": "operator"},
            "FINETUNING_POD_IP='operator': give the pod's own address (status.podIP): requests are sent there",
        ),
        ({"FINETUNING_GATEWAY": "public"}, "FINETUNING_GATEWAY='public': give namespace/name of a Gateway"),
        (
            {"FINETUNING_GATEWAY": "edge/public"},
            "FINETUNING_GATEWAY='edge/public': set FINETUNING_SERVING_DOMAIN too: routes need names of hosts",
        ),
        (
            {
                "FINETUNING_GATEWAY": "edge/public",
                "FINETUNING_SERVING_DOMAIN": "ai.example.org",
                "FINETUNING_INGRESS_CLASS": "public",
            },
            "FINETUNING_GATEWAY='edge/public': servers get an HTTPRoute or an Ingress; unset FINETUNING_INGRESS_CLASS",
        ),
        (
            {"FINETUNING_STORAGE_PROFILES": "/nowhere/profiles.yaml"},
            "FINETUNING_STORAGE_PROFILES='/nowhere/profiles.yaml': name a file that exists",
        ),
    ],
)
def test_a_wrong_variable_is_named_with_its_value_and_a_remedy(environ: Mapping[str, str], message: str) -> None:
    with pytest.raises(OptionsError) as refusal:
        Options.from_environment(environ)

    assert str(refusal.value) == message


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("fast: [", "its content must be YAML or JSON"),
        ("[fast]", "correct the file: Input should be a valid dictionary"),
        ("fast: {class: ssd}", "correct fast.class: Extra inputs are not permitted"),
        (
            "fast: {accessModes: []}",
            "correct fast.accessModes: Tuple should have at least 1 item after validation, not 0",
        ),
        ("fast: {accessModes: [RWX]}", "correct fast.accessModes.0: Input should be 'ReadWriteOnce', 'ReadOnlyMany',"),
    ],
)
def test_a_wrong_profile_is_named_by_its_path(tmp_path: Path, text: str, complaint: str) -> None:
    path = _written(tmp_path, "profiles.yaml", text)

    with pytest.raises(OptionsError) as refusal:
        Options.from_environment({"FINETUNING_STORAGE_PROFILES": path})

    assert str(refusal.value).startswith(f"FINETUNING_STORAGE_PROFILES={path!r}: {complaint}")


def test_without_certificate_files_a_certificate_is_made_for_the_host_of_the_address() -> None:
    progress = Options.from_environment({"FINETUNING_PROGRESS_URL": "https://progress.ml.svc:9443"}).progress

    assert progress is not None
    assert (progress.url, progress.port) == ("https://progress.ml.svc:9443", 8443)
    served = x509.load_pem_x509_certificate(progress.certificate.read_bytes())
    served.verify_directly_issued_by(x509.load_pem_x509_certificate(progress.ca.encode()))
    names = served.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["progress.ml.svc"]
    shutil.rmtree(progress.certificate.parent)


def test_the_policy_of_an_installation_is_read(tmp_path: Path) -> None:
    policy = """
    presets: {small: {training: {epochs: 1}, resources: {limits: {nvidia.com/gpu: 1}}}}
    bounds: {resources: {memory: 64Gi}, serverReplicas: 4, presetRequired: true}
    relocation:
      allowedSources: ["s3://models/"]
      allowedEndpoints: [https://store.example]
      endpoints: {hf: https://hub.example}
    egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8}}]}]
    """

    options = Options.from_environment({"FINETUNING_POLICY": _written(tmp_path, "policy.yaml", policy)})

    assert options.settings.presets == {
        "small": Preset.model_validate({"training": {"epochs": 1}, "resources": {"limits": {"nvidia.com/gpu": "1"}}})
    }
    assert options.settings.bounds == Bounds(resources={"memory": "64Gi"}, server_replicas=4, preset_required=True)
    assert options.settings.sources == SourcePolicy(
        allowed_sources=("s3://models/",),
        allowed_endpoints=("https://store.example",),
        endpoints=Mirrors(hf="https://hub.example"),
    )
    assert options.outside.egress == ({"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]},)


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        ("presets: {small: {model: {source: hf://a/b}}}", "presets.small.model"),
        ("presets: {small: {training: {epochs: 0}}}", "presets.small.training.epochs"),
        ("bounds: {resources: {memory: much}}", "bounds.resources.memory"),
        ("relocation: {allowedSources: [models]}", "relocation.allowedSources.0"),
        ("relocation: {endpoints: {https: https://mirror.example}}", "relocation.endpoints.https"),
    ],
)
def test_a_policy_that_cannot_be_used_is_refused_by_field(tmp_path: Path, policy: str, field: str) -> None:
    with pytest.raises(OptionsError, match=f"FINETUNING_POLICY=.*correct {re.escape(field)}"):
        Options.from_environment({"FINETUNING_POLICY": _written(tmp_path, "policy.yaml", policy)})


def test_the_way_outside_is_read(tmp_path: Path) -> None:
    bundle = "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n"

    options = Options.from_environment(
        {
            "FINETUNING_HTTP_PROXY": "http://proxy.example:3128",
            "FINETUNING_HTTPS_PROXY": "http://proxy.example:3128",
            "FINETUNING_NO_PROXY": "10.0.0.0/8, .example",
            "FINETUNING_CA_BUNDLE": _written(tmp_path, "ca.pem", bundle),
            "FINETUNING_PRIORITY_CLASS": "batch",
        }
    )

    assert options.outside == Outside(
        http_proxy="http://proxy.example:3128",
        https_proxy="http://proxy.example:3128",
        no_proxy=("10.0.0.0/8", ".example"),
        ca_bundle=bundle,
    )
    assert options.priority_class == "batch"
    variables = options.outside.variables
    assert variables["NO_PROXY"] == variables["no_proxy"]
    assert variables["no_proxy"] == "localhost,127.0.0.1,::1,.svc,.cluster.local,10.0.0.0/8,.example"


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("FINETUNING_HTTPS_PROXY", "proxy.example:3128", "give an address that begins with http:// or https://"),
        ("FINETUNING_HTTP_PROXY", "http://me:secret@proxy.example", "give an address without a user"),
        ("FINETUNING_CA_BUNDLE", "no certificate", "it must hold certificates in PEM"),
        ("FINETUNING_CA_BUNDLE", f"-----BEGIN CERTIFICATE-----\n{'A' * 65536}", "it may hold 65536 bytes"),
    ],
)
def test_a_way_outside_that_cannot_be_used_is_refused(tmp_path: Path, name: str, value: str, remedy: str) -> None:
    written = _written(tmp_path, "ca.pem", value) if name.endswith("BUNDLE") else value

    with pytest.raises(OptionsError) as refused:
        Options.from_environment({name: written})

    assert remedy in str(refused.value)
    assert "secret" not in str(refused.value)
