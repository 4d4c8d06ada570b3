#!/usr/bin/env bash
# mesh-node on lanes; see peer-mesh.sh.
MESH_TRANSPORT=lanes exec "$(dirname "$0")/peer-mesh.sh" "$@"
