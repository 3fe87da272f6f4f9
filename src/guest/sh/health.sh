# Answers each line with a look at the guest, and ends with its stdin. On Linux a look is one process: df.
exec 2>/dev/null
PATH=$PATH:/usr/sbin:/sbin
LC_ALL=C
export PATH LC_ALL
[ -r /proc/stat ] || memory=$(sysctl -n hw.memsize)
while read -r _; do
  printf "= df\n"
  df -P -k "$HOME"
  if [ -r /proc/stat ]; then
    printf "= stat\n"
    read -r line </proc/stat && printf "%s\n" "$line"
    printf "= meminfo\n"
    while read -r key value _; do
      printf "%s %s\n" "$key" "$value"
      [ "$key" != MemAvailable: ] || break
    done </proc/meminfo
  else
    printf "= memsize\n%s\n= vm_stat\n" "$memory"
    vm_stat
    printf "= iostat\n"
    iostat -c 2 -w 1
  fi
  printf "\036"
done
