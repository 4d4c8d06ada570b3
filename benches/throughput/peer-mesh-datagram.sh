#!/usr/bin/env bash
# mesh-node in standard mode; see peer-mesh.sh.
MESH_TRANSPORT=datagram exec "$(dirname "$0")/peer-mesh.sh" "$@"
