// Programs of our own that pods of a node run; they need no others.
module finetuning.dev/hack/cluster/pods

go 1.25.0
