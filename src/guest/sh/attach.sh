# Follows a run that was begun, from byte $2 of its stdout and byte $3 of its stderr, each counted from 1.
kill -0 "-$$" || exit 71
printf "\036%s go\036" "$id"
printf "\036%s go\036" "$id" >&4
code() { for f in "$d"/ended.*; do rc=${f##*.}; done; }
if [ -e "$d/ended" ]; then
  tail -c "+$2" "$d/out"
  tail -c "+$3" "$d/err" >&4
  code
  said "$rc"
else
  tail -c "+$2" -f "$d/out" 3<&- 4>&- &
  tail -c "+$3" -f "$d/err" >&4 3<&- 4>&- &
  (
    alive() {
      kill -0 "$leader" || return 1
      [ -r /proc/self/stat ] || return 0
      read -r s <"/proc/$leader/stat" || return 1
      case ${s##*") "} in Z*|X*) return 1 ;; esac
    }
    while alive; do
      sleep 1
      if [ -e "$d/full" ]; then
        # The end could not be written behind the output.
        sleep 2
        code
        said "$rc"
        exit
      fi
    done
    # The step has killed the one that waited for it.
    kill -KILL "-$leader"
    [ ! -e "$d/ended" ] || exit
    ending 137
  ) 3<&- &
fi
while read -r word <&3; do
  [ "$word" != bye ] || kill -KILL "-$leader"
done
kill -KILL 0
