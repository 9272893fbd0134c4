#!/usr/bin/env bash
# A throw-away SLURM on this machine's loopback, without systemd, for tests. As root:
#   apt-get install -y slurm-wlm munge
#   tests/slurm/cluster.sh start FOLDER [NODES] [CORES_PER_NODE]   prints what to export
#   tests/slurm/cluster.sh stop FOLDER                             by the daemons' process numbers
# Its nodes n1, n2, ... are daemons on this one machine. Without accounting `sacct` cannot answer, by
# which submitit looks after its jobs; bin/sacct stands in for it.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
command=$1 folder=$2 nodes=${3:-2} cores=${4:-2}
host=$(hostname -s)

configure() {
  mkdir -p "$folder"/{log,run,spool,state}
  (umask 077 && head -c 1024 /dev/urandom > "$folder/munge.key")
  local memory=$(( $(awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo) / nodes ))
  cat > "$folder/slurm.conf" <<CONF
ClusterName=throwaway
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job waits as long as credentials are valid: by default two minutes.
AuthInfo=socket=$folder/run/munge.socket,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldPort=$((20000 + $$ % 10000))
SlurmctldPidFile=$folder/run/slurmctld.pid
SlurmdPidFile=$folder/run/slurmd.%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.%n.log
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=1,batch_sched_delay=0
ReturnToService=2
SlurmdTimeout=20
KillWait=3
MinJobAge=86400
MailProg=/bin/true
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
PropagateResourceLimits=NONE
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
  for i in $(seq "$nodes"); do
    echo "NodeName=n$i NodeHostname=$host NodeAddr=127.0.0.1 Port=$((31000 + $$ % 1000 + i))" \
      "CPUs=$cores RealMemory=$memory State=UNKNOWN" >> "$folder/slurm.conf"
  done
}

start() {
  configure
  export SLURM_CONF=$folder/slurm.conf
  munged --force --key-file="$folder/munge.key" --socket="$folder/run/munge.socket" \
    --pid-file="$folder/run/munged.pid" --log-file="$folder/log/munged.log" \
    --seed-file="$folder/munge.seed" 2>> "$folder/log/start.log"
  slurmctld
  for i in $(seq "$nodes"); do slurmd -N "n$i"; done
  for _ in $(seq 100); do
    [ "$(sinfo -h -N -o %T 2> /dev/null | grep -c idle)" = "$nodes" ] && break
    sleep 0.1
  done
  sinfo -N >> "$folder/log/start.log"
  echo "export SLURM_CONF=$SLURM_CONF PATH=$here/bin:\$PATH"
}

stop() {
  SLURM_CONF=$folder/slurm.conf scancel --quiet --full --signal=KILL --state=running || true
  SLURM_CONF=$folder/slurm.conf scancel --quiet --user=root || true
  for file in "$folder"/run/*.pid; do
    local pid
    pid=$(cat "$file" 2> /dev/null) || continue
    case $(cat "/proc/$pid/comm" 2> /dev/null) in
      slurmd | slurmctld | munged)
        kill "$pid" && timeout 5 tail --pid="$pid" -f /dev/null || kill -KILL "$pid" || true ;;
    esac
  done
}

"$command"
