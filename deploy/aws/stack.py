"""Creates, updates and removes the pipeline on AWS that template.yaml describes.

    python deploy/aws/stack.py deploy --name photos --region eu-central-1 \
        Image=123456789012.dkr.ecr.eu-central-1.amazonaws.com/embedding-pipelines \
        VpcId=vpc-0a1b2c SubnetIds=subnet-0a1b2c,subnet-3d4e5f
    python deploy/aws/stack.py destroy --name photos --region eu-central-1

`deploy` waits until all of it runs, and says where to upload and what to read. `destroy` empties the two
buckets, objects and results alike, and removes everything; it asks first. Both take credentials as AWS's
own tools do. boto3 comes with the extra `buckets`.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

TEMPLATE = Path(__file__).with_name("template.yaml")
POLL_SECONDS = 5.0
CAPABILITIES = ["CAPABILITY_IAM"]
BUSY = "_IN_PROGRESS"


def main(arguments: list[str]) -> int:
    """What the command line says; 0 if it was done."""
    try:
        import boto3
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        return _say_error("boto3 is missing. Run: pip install 'embedding-pipelines[buckets]'")
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("action", choices=["deploy", "destroy"])
    parser.add_argument("parameters", nargs="*", metavar="NAME=VALUE", help="of template.yaml")
    parser.add_argument("--name", required=True, help="of the stack; its buckets begin with it")
    parser.add_argument("--region", help="by default that of your AWS configuration")
    parser.add_argument("--yes", action="store_true", help="destroy without a question")
    given = parser.parse_intermixed_args(arguments)
    try:
        session = boto3.Session(region_name=given.region)
        if given.action == "deploy":
            deploy(session, given.name, dict(map(_pair, given.parameters)))
        else:
            question = (
                f"Remove stack {given.name} with all objects in its buckets? Write its name: "
            )
            if not given.yes and _answer(question) != given.name:
                return _say_error("Nothing was removed. Without a terminal, add --yes.")
            destroy(session, given.name)
    except (BotoCoreError, ClientError, ValueError) as error:
        return _say_error(str(error))
    return 0


def deploy(session: Any, name: str, parameters: dict[str, str]) -> None:
    """Create the stack, or bring it up to date; parameters that are not named stay as they are. One
    that could not be created the first time is removed before, since AWS changes none of these.
    Raises ValueError if it ends otherwise, with the first reason that AWS gives."""
    client, before = session.client("cloudformation"), _stack(session, name)
    if before and before["StackStatus"] == "ROLLBACK_COMPLETE":
        client.delete_stack(StackName=name)
        before = _wait(session, name)
    names = [each["ParameterKey"] for each in before.get("Parameters", ())] if before else []
    values = [{"ParameterKey": key, "ParameterValue": text} for key, text in parameters.items()]
    values += [
        {"ParameterKey": key, "UsePreviousValue": True} for key in names if key not in parameters
    ]
    change = {
        "StackName": name,
        "TemplateBody": TEMPLATE.read_text(encoding="utf-8"),
        "Parameters": values,
        "Capabilities": CAPABILITIES,
        "Tags": [{"Key": "project", "Value": "embedding_pipelines"}],
    }
    try:
        (client.update_stack if before else client.create_stack)(**change)
    except client.exceptions.ClientError as error:
        if "No updates are to be performed" not in str(error):
            raise
    stack = _wait(session, name)
    if stack is None or stack["StackStatus"] not in ("CREATE_COMPLETE", "UPDATE_COMPLETE"):
        raise ValueError(
            f"Stack {name} is not deployed: {_reason(session, name)}. Correct it and deploy again, "
            f"or remove it: python deploy/aws/stack.py destroy --name {name}"
        )
    for output in stack["Outputs"]:
        if output["OutputKey"] != "Buckets":
            print(f"{output['OutputKey']:<10}{output['OutputValue']}")


def destroy(session: Any, name: str) -> None:
    """Empty the buckets and remove everything; what is gone already is no error."""
    stack = _stack(session, name)
    if stack is None:
        print(f"There is no stack {name}.")
        return
    outputs = {each["OutputKey"]: each["OutputValue"] for each in stack.get("Outputs", ())}
    for bucket in outputs.get("Buckets", "").split():
        print(f"emptied   {bucket}: {_empty(session, bucket):,} objects")
    session.client("cloudformation").delete_stack(StackName=name)
    left = _wait(session, name)
    if left is not None and left["StackStatus"] != "DELETE_COMPLETE":
        raise ValueError(
            f"Stack {name} is not removed: {_reason(session, name)}. If a bucket has been written "
            "to meanwhile, destroy it again."
        )
    print(f"removed   stack {name}")


def _empty(session: Any, bucket: str) -> int:
    """Delete all objects of a bucket, and all their versions; how many."""
    client, count = session.client("s3"), 0
    try:
        for page in client.get_paginator("list_object_versions").paginate(Bucket=bucket):
            entries = [*page.get("Versions", ()), *page.get("DeleteMarkers", ())]
            keys = [{"Key": each["Key"], "VersionId": each["VersionId"]} for each in entries]
            if keys:
                client.delete_objects(Bucket=bucket, Delete={"Objects": keys, "Quiet": True})
            count += len(keys)
    except client.exceptions.NoSuchBucket:
        return 0
    return count


def _stack(session: Any, name: str) -> dict[str, Any] | None:
    """The stack as it is, None without one."""
    client = session.client("cloudformation")
    try:
        stack: dict[str, Any] = client.describe_stacks(StackName=name)["Stacks"][0]
    except client.exceptions.ClientError as error:
        if "does not exist" in str(error):
            return None
        raise
    return None if stack["StackStatus"] == "DELETE_COMPLETE" else stack


def _wait(session: Any, name: str) -> dict[str, Any] | None:
    """The stack once nothing is under way any more."""
    while (stack := _stack(session, name)) and stack["StackStatus"].endswith(BUSY):
        time.sleep(POLL_SECONDS)
    return stack


def _reason(session: Any, name: str) -> str:
    """The first failure of the last change."""
    client = session.client("cloudformation")
    events = client.describe_stack_events(StackName=name)["StackEvents"]  # newest first
    failed = [each for each in events if each["ResourceStatus"].endswith("FAILED")]
    if not failed:
        return "AWS gives no reason"
    return f"{failed[-1]['LogicalResourceId']}: {failed[-1].get('ResourceStatusReason', '')}"


def _answer(question: str) -> str:
    try:
        return input(question)
    except EOFError:  # nobody is there to answer
        return ""


def _pair(text: str) -> tuple[str, str]:
    name, mark, value = text.partition("=")
    if not mark:
        raise ValueError(f"{text!r} is no NAME=VALUE.")
    return name, value


def _say_error(text: str) -> int:
    print(text, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
