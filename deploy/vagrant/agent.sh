#!/usr/bin/env bash
# On a node: agent.sh NAME ADDRESS MASTER_ADDRESS.
set -euo pipefail
name=$1 address=$2 master=$3 machine=/shoal/machine
install -d -m 700 /etc/shoal/agent /var/lib/shoal/agent
install -m 600 "$machine/ca.crt" /etc/shoal/agent/
install -m 600 "$machine/$name.crt" /etc/shoal/agent/node.crt
install -m 600 "$machine/$name.key" /etc/shoal/agent/node.key
uplink=$(ip -j -4 addr show to "$address" | python3 -c 'import json, sys; print(json.load(sys.stdin)[0]["ifname"])')
cat >/etc/shoal/agent/agent.yaml <<YAML
node: $name
masters: ["$master:7600"]
ca: /etc/shoal/agent/ca.crt
certificate: /etc/shoal/agent/node.crt
key: /etc/shoal/agent/node.key
address: $address
uplink: $uplink
data: /var/lib/shoal/agent
run: /run/shoal
cgroup: shoal
spawner: external
http: ["$address:10250"]
YAML
chmod 600 /etc/shoal/agent/agent.yaml
install -m 644 /shoal/package/shoal-{spawner,agent}.service /etc/systemd/system/
systemctl daemon-reload
if systemctl is-active --quiet shoal-spawner.service; then # provisioned again: the new version; containers run on
    systemctl reload shoal-spawner.service
    systemctl try-restart shoal-agent.service
fi
systemctl enable --now shoal-spawner.service shoal-agent.service
