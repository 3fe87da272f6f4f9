# As root, started before the state was saved: everything that can be ready is, so that what is left is quick.
cd "$1" || exit 1
trap "" HUP INT TERM
PATH=$PATH:/usr/sbin:/sbin
umask 077
keys=$(sshd -T | sed -n "s/^hostkey //p") || exit 1
[ -n "$keys" ] || { printf "sshd has no host keys\n" >&2; exit 1; }
pid_file=$(sshd -T | sed -n "s/^pidfile //p")
mine=
for key in $keys; do case $key in *ed25519*) mine=$key ;; esac; done
[ -n "$mine" ] || for key in $keys; do mine=$key; done
system=$(uname)
# Linux mixes what is written to its device, but draws from it a minute later; only a call makes it do so now.
reseed=
if [ "$system" = Linux ] && command -v perl >/dev/null; then
  mkfifo -m 600 seed
  perl -e "sysread(STDIN, \$s, 64) or exit; open(my \$r, q(>), q(/dev/urandom)) or exit 1; ioctl(\$r, 0x40085203, pack(q(iia*), 8 * length(\$s), length(\$s), \$s)); ioctl(\$r, 0x5207, 0);" <seed &
  reseed=$!
  exec 5>seed
fi
true >awaiting
IFS=" " read -r now seed key <in || exit 1
printf %s "$seed" >/dev/urandom
if [ -n "$reseed" ]; then
  printf %s "$seed" >&5
  exec 5>&-
  wait "$reseed"
fi
{ date -u -s "@$now" || date -u -s "@${now%.*}" || date -u -f %s "${now%.*}"; } >/dev/null 2>&1 || {
  printf "its clock cannot be set\n" >out
  exit 1
}
# Over the old one, by the shell alone: nobody comes in meanwhile.
IFS=,
# shellcheck disable=SC2086  # its lines
printf "%s\n" $key >"$mine" || { printf "its host key cannot be written\n" >out; exit 1; }
unset IFS
for key in $keys; do
  for old in "$key" "$key.pub"; do [ "$old" = "$mine" ] || [ ! -e "$old" ] || rm -f "$old"; done
done
# Where sshd is started for each connection, it reads the key then.
[ ! -r "$pid_file" ] || { read -r pid <"$pid_file" && kill -HUP "$pid"; }
printf "fresh\n" >out
[ "$system" != Darwin ] || ipconfig set en0 DHCP
rm -rf "$1"
