#!/usr/bin/env bash
# Brings the servers that the tests start into build/servers, as far as the system has none: packages
# of Debian, downloaded and unpacked, which needs no root and changes nothing outside, and Azurite
# of npm. Those that pip has are in the extra [dev]. What cannot be had is told by the tests.
cd "$(dirname "$0")/.." || exit
into=build/servers
mkdir -p "$into/debian"
PATH="$PATH:/usr/sbin:$(echo /usr/lib/postgresql/*/bin $into/debian/usr/{sbin,bin,lib/postgresql/*/bin} | tr ' ' :)"

packages=()
for pair in postgres:postgresql mariadbd:mariadb-server-core nginx:nginx-light sshd:openssh-server \
    ssh-keygen:openssh-client openssl:openssl; do
    command -v "${pair%%:*}" >/dev/null || packages+=("${pair##*:}")
done

if test "${#packages[@]}" -gt 0 && command -v apt-get >/dev/null; then
    echo "Downloading ${packages[*]} ..."
    test "$(id -u)" != 0 || apt-get -qq update
    for package in "${packages[@]}"; do
        # What it needs besides, and the system lacks.
        mapfile -t all < <(apt-get -s install --no-install-recommends "$package" |
            sed -n 's/^Inst \([^ ]*\).*/\1/p')
        (cd "$into/debian" && apt-get -qq download "${all[@]}" && for deb in *.deb; do
            dpkg-deb -x "$deb" . && rm "$deb"
        done)
    done
fi 2>&1 | grep -v 'No sandbox user'

# The one that a folder is not enough for.
if ! command -v npm >/dev/null && command -v apt-get >/dev/null && test "$(id -u)" = 0; then
    echo 'Installing npm ...'
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends npm >/dev/null
fi
if ! test -x "$into/node_modules/.bin/azurite-blob"; then
    echo 'Installing azurite ...'
    npm install --prefix "$into" --no-audit --no-fund --silent azurite
fi
exit 0
