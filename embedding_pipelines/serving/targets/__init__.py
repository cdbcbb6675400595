"""Where a pipeline can be deployed, one file each; the endpoint chooses among them.

`deploy` seals the live release in a bundle, gives it to the target, and keeps on record what the
target has created; `undeploy` removes all of that, and says what.
"""
