#!/bin/sh
# check-plan.sh RUN SETTINGS: shows the plan of a run, and fails unless the run confirms exactly that plan.
set -eu
mark plan -f "$1" --settings "$2"
hash=$(mark plan -f "$1" --settings "$2" -o json | python3 -c 'import json, sys; print(json.load(sys.stdin)["hash"])')
if ! grep -q "^  confirmPlan: \"\{0,1\}$hash\"\{0,1\}" "$1"; then
    echo "$1 does not confirm this plan. When you have read it, write:  confirmPlan: \"$hash\"" >&2
    exit 1
fi
