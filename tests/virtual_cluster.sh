#!/usr/bin/env bash
# A real Slurm cluster of N virtual nodes on one machine, for tests: `up [N]`, `down`.
# Each node is a slurmd in its own network, PID and UTS namespace with its own address, so Ray and torch.distributed
# see separate hosts. Nodes share the file system. Needs root; installs the Debian packages it needs.
# After `up`: export SLURM_CONF="$VCLUSTER_DIR/slurm.conf". `virtual_cluster.sh node N` starts the slurmd of node N again.
set -euo pipefail
dir=${VCLUSTER_DIR:-$PWD/.vcluster}
net=10.77.0

packages() {
    local missing=()
    for name in slurmctld slurmd slurm-client munge iproute2; do dpkg -s "$name" >/dev/null 2>&1 || missing+=("$name"); done
    ((${#missing[@]})) || return 0
    { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${missing[@]}"; } >&2
}

node() {
    # nsenter, not `ip netns exec`: the latter remounts /sys and slurmd then finds no cgroup file system
    setsid nsenter --net="/var/run/netns/vn$1" unshare -u -p -m --fork --kill-child --mount-proc \
        bash -c "hostname vn$1; slurmd -D -N vn$1; exit" >>"$dir/log/slurmd-vn$1.out" 2>&1 & # bash reaps orphans, as an init does
}

up() {
    local n=${1:-2} i
    packages
    if ip netns list | grep -q '^vn[0-9]' || pgrep -x slurmctld >/dev/null; then leave; fi
    mkdir -p "$dir"/{state,spool,log} /run/munge
    if ! munge -n >/dev/null 2>&1; then chown -R munge: /run/munge; su -s /bin/sh munge -c munged; fi
    ip link show vcbr >/dev/null 2>&1 || { ip link add vcbr type bridge; ip addr add $net.1/24 dev vcbr; ip link set vcbr up; }
    grep -q "^$net.1 vcctl" /etc/hosts || echo "$net.1 vcctl" >>/etc/hosts
    {
        cat <<CONF
ClusterName=virtual
SlurmctldHost=vcctl($net.1)
AuthType=auth/munge
AuthInfo=cred_expire=5
SlurmUser=root
SlurmdUser=root
SlurmctldPort=16817
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2
ReturnToService=2
MpiDefault=none
KillWait=5
SlurmdTimeout=20
SwitchType=switch/none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
CONF
        for ((i = 1; i <= n; i++)); do
            echo "NodeName=vn$i NodeHostname=vn$i NodeAddr=$net.$((10 + i)) Port=17001 CPUs=$(getconf _NPROCESSORS_ONLN) RealMemory=4000"
        done
        echo "PartitionName=low Nodes=vn[1-$n] Default=YES PriorityTier=1 MaxTime=INFINITE State=UP"
        echo "PartitionName=high Nodes=vn[1-$n] PriorityTier=10 MaxTime=INFINITE State=UP"
    } >"$dir/slurm.conf"
    export SLURM_CONF="$dir/slurm.conf"
    setsid unshare -u bash -c "hostname vcctl; exec slurmctld -D" >"$dir/log/slurmctld.out" 2>&1 &
    for ((i = 1; i <= n; i++)); do
        grep -q " vn$i\$" /etc/hosts || echo "$net.$((10 + i)) vn$i" >>/etc/hosts
        ip netns add "vn$i"
        ip link add "vcv$i" type veth peer name eth0 netns "vn$i"
        ip link set "vcv$i" master vcbr up
        ip -n "vn$i" addr add "$net.$((10 + i))/24" dev eth0
        ip -n "vn$i" link set eth0 up
        ip -n "vn$i" link set lo up
        node "$i"
    done
    for ((i = 0; i < 30; i++)); do
        [[ $(sinfo -h -o %t 2>/dev/null | sort -u) == idle ]] && { sinfo; return; }
        sleep 1
    done
    sinfo; echo "cluster did not come up; see $dir/log" >&2; return 1
}

leave() { # ends virtual nodes and controllers, also those that a killed test has left behind
    local pid ns
    for pid in $(pgrep -x slurmctld); do
        if grep -qz '^VCLUSTER_DIR=' "/proc/$pid/environ"; then kill "$pid" || true; fi
    done
    for ns in $(ip netns list | awk '/^vn[0-9]/{print $1}'); do
        for pid in $(ip netns pids "$ns"); do kill "$pid" 2>/dev/null || true; done
    done
    sleep 2
    for ns in $(ip netns list | awk '/^vn[0-9]/{print $1}'); do
        for pid in $(ip netns pids "$ns"); do kill -9 "$pid" 2>/dev/null || true; done
        ip netns del "$ns"
    done
    ip link del vcbr 2>/dev/null || true
}

down() {
    export SLURM_CONF="$dir/slurm.conf"
    scancel -u root 2>/dev/null || true
    sleep 1
    leave
    rm -rf "$dir"
}

case ${1:-} in up) up "${2:-2}" ;; down) down ;; node) export SLURM_CONF="$dir/slurm.conf" && node "$2" ;; *) sed -n 2,6p "$0"; exit 2 ;; esac
