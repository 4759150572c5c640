#!/usr/bin/env bash
# On the master: master.sh ADDRESS. etcd on loopback with its own certificates, the master on the private network.
set -euo pipefail
address=$1 machine=/shoal/machine
id shoal >/dev/null 2>&1 || useradd --system --home-dir /var/lib/shoal --shell /usr/sbin/nologin shoal
id shoal-etcd >/dev/null 2>&1 || useradd --system --home-dir /var/lib/shoal-etcd --shell /usr/sbin/nologin shoal-etcd
install -d -m 711 /etc/shoal
install -d -m 750 -o root -g shoal /etc/shoal/master /etc/shoal/master/etcd
install -d -m 750 -o root -g shoal-etcd /etc/shoal/etcd
install -m 640 -o root -g shoal "$machine"/{ca.crt,master.crt,master.key} /etc/shoal/master/
install -m 640 -o root -g shoal "$machine"/etcd/{ca.crt,etcd-client.crt,etcd-client.key} /etc/shoal/master/etcd/
install -m 640 -o root -g shoal-etcd "$machine"/etcd/{ca.crt,etcd.crt,etcd.key} /etc/shoal/etcd/
if [ -x /shoal/package/etcd ]; then install -m 755 /shoal/package/etcd /opt/shoal/bin/etcd
elif ! [ -x /opt/shoal/bin/etcd ]; then
    echo "etcd is missing: run 'make setup-demo' on the host before 'vagrant up'" >&2
    exit 1
fi
cat >/etc/shoal/master/master.yaml <<YAML
name: master
listen: ["$address:7600", "127.0.0.1:7600"]
advertise: "$address:7600"
http: ["$address:7601"]
ca: /etc/shoal/master/ca.crt
certificate: /etc/shoal/master/master.crt
key: /etc/shoal/master/master.key
etcd:
  endpoints: ["127.0.0.1:2379"]
  ca: /etc/shoal/master/etcd/ca.crt
  certificate: /etc/shoal/master/etcd/etcd-client.crt
  key: /etc/shoal/master/etcd/etcd-client.key
cluster_cidr: 10.244.0.0/16
YAML
install -d -m 700 /root/.config/shoal
install -m 600 "$machine"/{ca.crt,admin.crt,admin.key} /root/.config/shoal/
cat >/root/.config/shoal/config <<YAML
current-context: vagrant
contexts:
- name: vagrant
  servers: ["127.0.0.1:7600"]
  ca: /root/.config/shoal/ca.crt
  certificate: /root/.config/shoal/admin.crt
  key: /root/.config/shoal/admin.key
YAML
chmod 600 /root/.config/shoal/config
install -m 644 /shoal/package/shoal-{etcd,master}.service /etc/systemd/system/
systemctl daemon-reload
systemctl try-restart shoal-master.service # provisioned again: the new version
systemctl enable --now shoal-etcd.service shoal-master.service
