#!/usr/bin/env bash
# On the host, before `vagrant up`: prepare.sh MASTER_ADDRESS AGENTS
# Makes .cache/vagrant/package (the wheels, etcd, the units) and one folder of certificates per machine.
set -euo pipefail
cd "$(dirname "$0")/../.."
master=$1 agents=$2
cache=$PWD/.cache/vagrant package=$PWD/.cache/vagrant/package certs=$PWD/.cache/vagrant/authority
bash deploy/setup.sh venv
python=.venv/bin/python

umask 077
mkdir -p "$package/wheels" "$certs"
$python -m build --wheel --no-isolation -o "$package/wheels" . >/dev/null
$python -m pip wheel -q --disable-pip-version-check -w "$package/wheels" "$package"/wheels/shoal-*.whl
cp deploy/systemd/*.service "$package/"
if [ -x .tools/etcd-server/usr/bin/etcd ]; then cp .tools/etcd-server/usr/bin/etcd "$package/"; fi

issue() { $python -m shoal.deploy.certs issue "$@" >/dev/null; }

# hand_over MACHINE FOLDER FILE...: puts copies of the files where only that machine sees them.
hand_over() {
    local machine=$cache/machines/$1 from=$2 file
    shift 2
    mkdir -p "$machine"
    for file in "$@"; do cp "$from/$file" "$machine/"; done
}

$python -m shoal.deploy.certs init "$certs/etcd" --name "shoal etcd" >/dev/null
$python -m shoal.deploy.certs init "$certs" >/dev/null
issue "$certs/etcd" etcd etcd --address 127.0.0.1
issue "$certs/etcd" etcd-client etcd-client
issue "$certs" master master --address "$master" --address 127.0.0.1
issue "$certs" admin admin
hand_over master "$certs" ca.crt master.crt master.key admin.crt admin.key
mkdir -p "$cache/machines/master/etcd"
cp "$certs"/etcd/{ca.crt,etcd.crt,etcd.key,etcd-client.crt,etcd-client.key} "$cache/machines/master/etcd/"
for ((i = 1; i <= agents; i++)); do
    issue "$certs" node "node-$i"
    hand_over "node-$i" "$certs" ca.crt "node-$i.crt" "node-$i.key"
done
