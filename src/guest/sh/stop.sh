# Ends a run: TERM, grace (tenths of a second), KILL. Those of ours that write its output down live on to its end.
mine="$leader $t1 $t2 $watcher"
grace=$2
kill -TERM "-$leader"
left
[ -z "$others" ] || kill -TERM $others
n=0
while [ -n "$group$others" ] && [ "$n" -lt "$grace" ]; do
  sleep 0.1 || { sleep 1; n=$((n + 9)); }
  n=$((n + 1))
  left
done
n=0
while [ -n "$group$others" ]; do
  [ "$n" -lt 50 ] || exit 1
  kill -KILL $group $others
  n=$((n + 1))
  [ "$n" -lt 5 ] || sleep 0.1 || sleep 1
  left
done
printf "\036%s stopped\036" "$id"
exit 0
