#!/usr/bin/env bash
# On every machine: installs the package from the shared folder, without the network where the box has what it needs.
set -euo pipefail
package=/shoal/package
missing=()
python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
command -v nft >/dev/null || missing+=(nftables)
command -v ip >/dev/null || missing+=(iproute2)
[ -e /usr/lib/x86_64-linux-gnu/libseccomp.so.2 ] || [ -e /usr/lib/aarch64-linux-gnu/libseccomp.so.2 ] || missing+=(libseccomp2)
if [ ${#missing[@]} != 0 ]; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
fi
install -d -m 755 /opt/shoal
install -d -m 700 /etc/shoal /var/lib/shoal
[ -x /opt/shoal/bin/python ] || python3 -m venv /opt/shoal
/opt/shoal/bin/python -m pip install -q --no-index --find-links "$package/wheels" --force-reinstall --no-deps shoal
/opt/shoal/bin/python -m pip install -q --no-index --find-links "$package/wheels" shoal
ln -sf /opt/shoal/bin/shoal /usr/local/bin/shoal
