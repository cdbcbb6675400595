"""The stack on AWS: its template is a right one, and what `deploy` creates `destroy` removes."""

import importlib.util
import io
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import yaml

from embedding_pipelines.spec.load import parse_pipeline
from embedding_pipelines_tests.page import ROOT

FOLDER = ROOT / "deploy" / "aws"
IN, OUT = "photos-in-123456789012-us-east-1", "photos-out-123456789012-us-east-1"


class Loader(yaml.SafeLoader):
    """Reads CloudFormation's short forms as the values that they are written with."""


def _value(loader: Loader, suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return node.value
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_mapping(node, deep=True)  # type: ignore[arg-type]


Loader.add_multi_constructor("!", _value)


@pytest.fixture(scope="module")
def template() -> dict[str, Any]:
    values: dict[str, Any] = yaml.load((FOLDER / "template.yaml").read_text(), Loader)
    return values


@pytest.fixture
def stack(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script, on an AWS of this process's own."""
    from moto import mock_aws

    found = importlib.util.spec_from_file_location("stack", FOLDER / "stack.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    monkeypatch.setattr(module, "POLL_SECONDS", 0)
    for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    with mock_aws():
        yield module


@pytest.mark.slow
def test_the_template_is_right_by_the_schemas_of_aws() -> None:
    from cfnlint import api

    text = (FOLDER / "template.yaml").read_text()
    faults = [match for match in api.lint_all(text) if not match.rule.id.startswith("I")]
    assert [str(fault) for fault in faults] == []
    # The service takes no aliases, which the linter does.
    assert not any(
        isinstance(token, yaml.AliasToken | yaml.AnchorToken) for token in yaml.scan(text)
    )


def test_no_role_may_do_more_than_it_does(template: dict[str, Any]) -> None:
    roles = {
        name: entry["Properties"]["Policies"][0]["PolicyDocument"]["Statement"]
        for name, entry in template["Resources"].items()
        if entry["Type"] == "AWS::IAM::Role"
    }
    assert roles.keys() == {"WorkerRole", "ServerRole", "StartRole"}
    for name, statements in roles.items():
        for statement in statements:
            actions = statement["Action"]
            actions = [actions] if isinstance(actions, str) else actions
            assert not any("*" in action for action in actions), name
            assert statement["Resource"] != "*" or actions == ["ecr:GetAuthorizationToken"], name
            writes = [action for action in actions if re.search("s3:(Put|Delete)", action)]
            assert not writes or statement["Resource"] == "${OutputBucket.Arn}/*"
            assert not writes or name == "WorkerRole"  # nobody writes to the source


def test_the_pipeline_in_it_is_one(template: dict[str, Any]) -> None:
    for name in ("Worker", "Server"):
        (container,) = template["Resources"][name]["Properties"]["ContainerDefinitions"]
        values = {each["Name"]: each["Value"] for each in container["Environment"]}
        text = values["PIPELINE"].replace("${Model}", template["Parameters"]["Model"]["Default"])
        text = text.replace("${InputBucket}", IN).replace("${OutputBucket}", OUT)
        text = text.replace("${Queue}", "https://sqs.us-east-1.amazonaws.com/123456789012/q")
        spec = parse_pipeline(text, "images", name)
        assert (spec.output, spec.source.place) == (f"s3://{OUT}/results/", f"s3://{IN}/")
        assert values["WAREHOUSE"] == "bucket: s3://${OutputBucket}/warehouse"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:moto", "ignore::DeprecationWarning")
def test_what_is_deployed_is_destroyed(
    stack: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """As far as moto knows CloudFormation: it deletes no services, and has no scaling or alarms."""
    import boto3

    session = boto3.Session(region_name="us-east-1")
    ec2, s3 = session.client("ec2"), session.client("s3")
    vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    subnet = ec2.describe_subnets()["Subnets"][0]["SubnetId"]
    place = ["--name", "photos", "--region", "us-east-1"]
    groups = len(ec2.describe_security_groups()["SecurityGroups"])
    parameters = ["Image=x:1", f"VpcId={vpc}", f"SubnetIds={subnet}"]
    assert stack.main(["deploy", *place, *parameters]) == 0
    assert f"Input     s3://{IN}/\nOutput    s3://{OUT}/results/\n" in capsys.readouterr().out
    s3.put_object(Bucket=IN, Key="a.jpg", Body=b"x")
    s3.put_object(Bucket=OUT, Key="results/index.json", Body=b"{}")
    services = session.client("ecs").list_services(cluster="photos")["serviceArns"]
    assert len(services) == 2
    assert stack.main(["destroy", *place, "--yes"]) == 0
    assert f"emptied   {IN}: 1 objects" in capsys.readouterr().out
    assert s3.list_buckets()["Buckets"] == []
    assert "QueueUrls" not in session.client("sqs").list_queues()
    assert session.client("iam").list_roles()["Roles"] == []
    assert session.client("logs").describe_log_groups()["logGroups"] == []
    assert len(ec2.describe_security_groups()["SecurityGroups"]) == groups
    assert stack.main(["destroy", *place, "--yes"]) == 0
    assert "There is no stack photos." in capsys.readouterr().out


def test_a_stack_that_aws_refuses_says_why(
    stack: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = ["--name", "photos", "--region", "us-east-1"]
    assert stack.main(["deploy", *place, "nonsense"]) == 1
    assert "'nonsense' is no NAME=VALUE." in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO())  # nobody answers
    assert stack.main(["destroy", *place]) == 1
    assert "Nothing was removed. Without a terminal, add --yes." in capsys.readouterr().err
    monkeypatch.setattr("builtins.input", lambda _: "n")
    assert stack.main(["destroy", *place]) == 1
    assert "Nothing was removed." in capsys.readouterr().err


def test_what_could_not_be_created_is_removed_and_created_anew(stack: ModuleType) -> None:
    """AWS changes no stack in ROLLBACK_COMPLETE; moto has none."""
    states = ["ROLLBACK_COMPLETE", "DELETE_IN_PROGRESS", "DELETE_COMPLETE", "CREATE_COMPLETE"]
    calls: list[str] = []

    class Client:
        exceptions = type("Exceptions", (), {"ClientError": KeyError})

        def describe_stacks(self, **_: Any) -> Any:
            entry = {"StackStatus": states.pop(0), "Parameters": [{"ParameterKey": "VpcId"}]}
            return {"Stacks": [{**entry, "Outputs": []}]}

        def __getattr__(self, name: str) -> Any:
            return lambda **values: calls.append(f"{name} {len(values.get('Parameters', []))}")

    session = type("Session", (), {"client": lambda *_: Client()})()
    stack.deploy(session, "photos", {"Image": "x:1"})
    assert calls == ["delete_stack 0", "create_stack 1"]
