#!/usr/bin/env bash
# Builds every image: hack/images/build.sh [role ...]. DOCKER names the program (docker, podman, nerdctl), REGISTRY goes in front
# of names, BUILD_ARGS holds further build arguments, for example "PYTHON_IMAGE=... PIP_INDEX_URL=...".
# Each image is tagged with the project's version and with a digest of what it is built from: equal input, equal tag.
set -euo pipefail
cd "$(dirname "$0")/../.."

docker=${DOCKER:-docker}
registry=${REGISTRY:+${REGISTRY%/}/}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
roles=("$@")
[[ ${#roles[@]} -gt 0 ]] || roles=(operator relocator models trainer evaluator server)

arguments=(--build-arg "VERSION=$version" --build-arg "MODELS_IMAGE=${registry}finetuning-models:$version")
for argument in ${BUILD_ARGS:-}; do
    arguments+=(--build-arg "$argument")
done

dockerfile() {
    case $1 in
    operator) echo operator/Dockerfile ;;
    models) echo workload/Dockerfile ;;
    *) echo "$1-image/Dockerfile" ;;
    esac
}

# What git knows of the build's context, the image's own Dockerfile, and the arguments.
inputs() {
    {
        printf '%s\n' "$1" "${arguments[@]}"
        git ls-files --cached --others --exclude-standard -- pyproject.toml constraints.txt README.md LICENSE hack/images \
            crds/finetuning_api '*/finetuning_*' | sort | xargs sha256sum
    } | sha256sum | cut -c1-12
}

for role in "${roles[@]}"; do
    file=$(dockerfile "$role")
    name=${registry}finetuning-$role
    tag=in-$(inputs "$(sha256sum "$file")")
    "$docker" build --file "$file" --tag "$name:$version" --tag "$name:$tag" "${arguments[@]}" .
    echo "$name:$version $name:$tag $("$docker" image inspect --format '{{.Size}}' "$name:$version") bytes"
done
