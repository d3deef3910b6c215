#!/usr/bin/env bash
# Installs what the tests of clusters need from the system's packages (Slurm, munge, iproute2), where it is missing.
#   bash tests/cluster/install_slurm.sh
# Exit codes: 0 all is there, 1 it cannot be installed. Never: skipped.
set -euo pipefail

programs=(slurmctld slurmd sbatch srun scontrol munged ip)

missing() { # prints the programs that are not there
    local program
    for program in "${programs[@]}"; do
        command -v "$program" >/dev/null || printf '%s ' "$program"
    done
}

export PATH=$PATH:/usr/sbin:/sbin
[[ -n $(missing) ]] || exit 0
echo "installing Slurm for the tests (missing: $(missing)) ..." >&2
if ! command -v apt-get >/dev/null; then
    echo 'There is no apt-get here: install Slurm 21.08 or newer (with slurmctld and slurmd), munge and iproute2 yourself.' >&2
    exit 1
fi
as_root=()
if [[ $UID -ne 0 ]]; then
    as_root=(sudo -n)
fi
export DEBIAN_FRONTEND=noninteractive
if ! { "${as_root[@]}" apt-get -qq update && "${as_root[@]}" apt-get -qq install -y --no-install-recommends slurm-wlm munge iproute2; } >&2; then
    echo 'Slurm could not be installed; the tests of clusters want root (or sudo without a password) and a package mirror.' >&2
    exit 1
fi
[[ -z $(missing) ]] || {
    echo "Still missing: $(missing)" >&2
    exit 1
}
