/*
 * PID 1 of the small Linux guest, and its agent.
 *
 *   initramfs: devices, modules, the disk  ->  switch to the disk
 *   disk:      mounts, loopback, eth0      ->  "tart-qemu: network up" on the console
 *              sshd (restarted if it ends) ->  "tart-qemu: ssh up", once it listens
 *              virtio-serial ports, one process each (restarted if it ends)
 *
 * A port carries frames: type (1 byte), length (4, big endian), payload. A host that connects sends N <nonce>
 * first and reads until it sees n <nonce>: what an earlier client left in the queue ends there.
 *
 *   host -> guest   N nonce | P ping | S seconds(8) nanoseconds(4) entropy | K fresh host keys | O power off
 *                   R flags(1) columns(2) rows(2) argv, NUL separated | I input | E end of input | W columns rows
 *   guest -> host   n nonce | k done | o output | e error output | x code(4)
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/random.h>
#include <net/if.h>
#include <net/route.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define UID_ADMIN 1000
#define GID_SUDO 27
#define PORTS 5 /* as in agent.rs */
#define FRAME_MAX (1 << 20)
#define OUTPUT_CHUNK (32 << 10)

static char cmdline[4096];

static void say(const char *format, ...) {
  va_list args;
  va_start(args, format);
  int fd = open("/dev/console", O_WRONLY | O_NOCTTY | O_CLOEXEC);
  if (fd >= 0) {
    vdprintf(fd, format, args);
    close(fd);
  }
  va_end(args);
}

static void write_file(const char *path, const char *text) {
  int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) return;
  if (write(fd, text, strlen(text)) < 0) say("tart-qemu: cannot write %s\n", path);
  close(fd);
}

static const char *option(const char *name) {
  static char value[256];
  char *at = strstr(cmdline, name);
  if (!at) return NULL;
  snprintf(value, sizeof value, "%.*s", (int)strcspn(at + strlen(name), " \n"), at + strlen(name));
  return value;
}

/* ---- the initramfs ---- */

static void insert_module_fd(int fd) {
  if (fd < 0) return;
  if (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST) say("tart-qemu: module refused: %m\n");
  close(fd);
}

static int open_module(const char *name) {
  char path[128];
  snprintf(path, sizeof path, "/modules/%s.ko", name);
  return open(path, O_RDONLY | O_CLOEXEC);
}

static void insert_boot_modules(void) {
  char names[1024] = {0};
  int fd = open("/modules/order", O_RDONLY | O_CLOEXEC);
  if (fd < 0 || read(fd, names, sizeof names - 1) < 0) return;
  close(fd);
  for (char *name = strtok(names, " \n"); name; name = strtok(NULL, " \n")) insert_module_fd(open_module(name));
}

static void copy_file(const char *from, const char *to, mode_t mode) {
  char bytes[8192];
  int in = open(from, O_RDONLY | O_CLOEXEC), out = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
  for (ssize_t n; in >= 0 && out >= 0 && (n = read(in, bytes, sizeof bytes)) > 0;)
    if (write(out, bytes, n) != n) break;
  if (in >= 0) close(in);
  if (out >= 0) close(out);
}

static void enter_disk(void) {
  mkdir("/disk", 0755);
  int tries = 0;
  while (mount("/dev/vda", "/disk", "ext4", MS_NOATIME, "noinit_itable") && tries++ < 5000) usleep(2000);
  if (tries > 5000) say("tart-qemu: no disk: %m\n");
  mount("/dev", "/disk/dev", NULL, MS_MOVE, NULL);
  mount("/proc", "/disk/proc", NULL, MS_MOVE, NULL);
  mount("tmpfs", "/disk/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755");
  mkdir("/disk/run/sshd", 0755);
  mkdir("/disk/run/preheat", 0755);
  copy_file("/keys/authorized_keys", "/disk/run/preheat/authorized_keys", 0644);
  copy_file("/keys/ssh_host_ed25519_key", "/disk/run/preheat/ssh_host_ed25519_key", 0600);
  copy_file("/keys/ssh_host_ed25519_key.pub", "/disk/run/preheat/ssh_host_ed25519_key.pub", 0644);
  if (chdir("/disk") || mount(".", "/", NULL, MS_MOVE, NULL) || chroot(".") || chdir("/"))
    say("tart-qemu: cannot enter the disk: %m\n");
}

/* ---- the disk ---- */

static void mount_rest(void) {
  mount("sysfs", "/sys", "sysfs", 0, "");
  mkdir("/dev/pts", 0755);
  mount("devpts", "/dev/pts", "devpts", 0, "gid=5,mode=620,ptmxmode=666");
  mkdir("/dev/shm", 01777);
  mount("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777");
  mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777");
  mkdir("/run/lock", 01777);
  int ignored = symlink("/proc/self/fd", "/dev/fd") | symlink("/proc/self/fd/0", "/dev/stdin") |
                symlink("/proc/self/fd/1", "/dev/stdout") | symlink("/proc/self/fd/2", "/dev/stderr");
  (void)ignored;
  struct rlimit files = {65536, 1 << 20};
  setrlimit(RLIMIT_NOFILE, &files);
  struct rlimit core = {0, RLIM_INFINITY};
  setrlimit(RLIMIT_CORE, &core);
}

static struct sockaddr address(const char *text) {
  struct sockaddr_in in = {.sin_family = AF_INET};
  inet_pton(AF_INET, text, &in.sin_addr);
  struct sockaddr out;
  memcpy(&out, &in, sizeof out);
  return out;
}

static void interface_up(int fd, const char *name) {
  struct ifreq request = {0};
  strcpy(request.ifr_name, name);
  ioctl(fd, SIOCGIFFLAGS, &request);
  request.ifr_flags |= IFF_UP | IFF_RUNNING;
  if (ioctl(fd, SIOCSIFFLAGS, &request)) say("tart-qemu: %s: %m\n", name);
}

static void network_up(void) {
  int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  struct ifreq request = {0};
  interface_up(fd, "lo");
  strcpy(request.ifr_name, "eth0");
  request.ifr_addr = address("10.0.2.15");
  for (int tries = 0; ioctl(fd, SIOCSIFADDR, &request) && errno == ENODEV && tries < 500; tries++) usleep(2000);
  request.ifr_netmask = address("255.255.255.0");
  ioctl(fd, SIOCSIFNETMASK, &request);
  interface_up(fd, "eth0");
  struct rtentry route = {0};
  route.rt_dst = address("0.0.0.0");
  route.rt_genmask = address("0.0.0.0");
  route.rt_gateway = address("10.0.2.2");
  route.rt_flags = RTF_UP | RTF_GATEWAY;
  ioctl(fd, SIOCADDRT, &route);
  close(fd);
}

static void default_signals(void) {
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, NULL);
  for (int number = 1; number < 32; number++) signal(number, SIG_DFL);
}

static pid_t spawn(char *const argv[]) {
  pid_t pid = fork();
  if (pid) return pid;
  default_signals();
  setsid();
  int null = open("/dev/null", O_RDWR);
  dup2(null, 0);
  dup2(null, 1);
  dup2(null, 2);
  setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 1);
  setenv("LANG", "C.UTF-8", 1);
  execv(argv[0], argv);
  _exit(127);
}

static pid_t start_sshd(void) {
  char *argv[] = {"/usr/sbin/sshd", "-D", "-r", "-E", "/run/sshd.log", NULL};
  return spawn(argv);
}

/* Whether anybody listens on port 22, without a connection that sshd would have to serve. */
static int sshd_listens(void) {
  static char table[32768];
  int found = 0;
  const char *paths[] = {"/proc/net/tcp", "/proc/net/tcp6"};
  for (int at = 0; at < 2; at++) {
    int fd = open(paths[at], O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, table, sizeof table - 1);
    if (fd >= 0) close(fd);
    if (n <= 0) continue;
    table[n] = 0;
    found |= strstr(table, ":0016 00000000:0000 0A") || strstr(table, ":0016 00000000000000000000000000000000:0000 0A");
  }
  return found;
}

static void wait_for_sshd(void) {
  for (int tries = 0; !sshd_listens() && tries < 6000; tries++) usleep(10000);
}

/* The host lets connections in from here on: one that comes too early is refused there, and costs nothing here. */
static void report_sshd(void) {
  if (fork()) return;
  wait_for_sshd();
  say("tart-qemu: ssh up\n");
  _exit(0);
}

static void power_off(void) {
  kill(-1, SIGTERM);
  for (int tries = 0; tries < 100 && waitpid(-1, NULL, WNOHANG) >= 0; tries++) usleep(10000);
  kill(-1, SIGKILL);
  sync();
  mount(NULL, "/", NULL, MS_REMOUNT | MS_RDONLY, NULL);
  reboot(RB_POWER_OFF);
}

/* ---- a port ---- */

struct session {
  int port;
  pid_t child;
  int in, out, err;
  int tty;
  char pending[FRAME_MAX];
  size_t pending_at, pending_len;
  int input_ended;
};

static int write_port(int port, const void *bytes, size_t length) {
  while (length) {
    ssize_t n = write(port, bytes, length);
    if (n > 0) {
      bytes = (const char *)bytes + n;
      length -= n;
      continue;
    }
    if (n < 0 && errno != EAGAIN && errno != EINTR) return -1;
    struct pollfd poller = {port, POLLOUT, 0};
    poll(&poller, 1, 1000);
    if (poller.revents & POLLHUP) return -1;
  }
  return 0;
}

static int send_frame(int port, char type, const void *payload, uint32_t length) {
  char frame[5 + OUTPUT_CHUNK];
  uint32_t wire = htonl(length);
  frame[0] = type;
  memcpy(frame + 1, &wire, 4);
  memcpy(frame + 5, payload, length);
  return write_port(port, frame, 5 + length);
}

static int read_port(int port, void *bytes, size_t length) {
  while (length) {
    ssize_t n = read(port, bytes, length);
    if (n > 0) {
      bytes = (char *)bytes + n;
      length -= n;
      continue;
    }
    if (n == 0) return -1;
    if (errno != EAGAIN && errno != EINTR) return -1;
    struct pollfd poller = {port, POLLIN, 0};
    poll(&poller, 1, 1000);
    if ((poller.revents & POLLHUP) && !(poller.revents & POLLIN)) return -1;
  }
  return 0;
}

static int set_clock_and_entropy(const unsigned char *payload, uint32_t length) {
  if (length < 12 || length > 12 + 256) return -1;
  uint64_t seconds = 0;
  uint32_t nanoseconds = 0;
  for (int i = 0; i < 8; i++) seconds = seconds << 8 | payload[i];
  for (int i = 8; i < 12; i++) nanoseconds = nanoseconds << 8 | payload[i];
  struct timespec now = {seconds, nanoseconds};
  int failed = clock_settime(CLOCK_REALTIME, &now);
  struct {
    struct rand_pool_info info;
    unsigned char bytes[256];
  } entropy = {.info = {.entropy_count = (int)(length - 12) * 8, .buf_size = (int)(length - 12)}};
  memcpy(entropy.bytes, payload + 12, length - 12);
  int fd = open("/dev/urandom", O_WRONLY | O_CLOEXEC);
  failed |= ioctl(fd, RNDADDENTROPY, &entropy) | ioctl(fd, RNDRESEEDCRNG, 0);
  close(fd);
  return failed;
}

static int fresh_host_keys(void) {
  char *argv[] = {"/usr/local/sbin/fresh-host-keys", NULL};
  int status = -1;
  waitpid(spawn(argv), &status, 0);
  if (!status) wait_for_sshd();
  return status;
}

static void become_admin(void) {
  gid_t groups[] = {UID_ADMIN, GID_SUDO};
  setgroups(2, groups);
  if (setgid(UID_ADMIN) || setuid(UID_ADMIN)) _exit(126);
  setenv("HOME", "/home/admin", 1);
  setenv("USER", "admin", 1);
  setenv("LOGNAME", "admin", 1);
  setenv("SHELL", "/bin/bash", 1);
  setenv("LANG", "C.UTF-8", 1);
  setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 1);
  if (chdir("/home/admin")) _exit(126);
}

static void exec_child(char *argv[]) {
  default_signals();
  become_admin();
  execvp(argv[0], argv);
  dprintf(2, "%s: %s\n", argv[0], strerror(errno));
  _exit(127);
}

static int start_command(struct session *s, unsigned char *payload, uint32_t length) {
  if (length < 7 || payload[length - 1] || s->child) return -1;
  char *argv[256] = {0};
  int count = 0;
  for (char *at = (char *)payload + 5; at < (char *)payload + length && count < 255; at += strlen(at) + 1)
    argv[count++] = at;
  struct winsize size = {.ws_col = payload[1] << 8 | payload[2], .ws_row = payload[3] << 8 | payload[4]};
  s->tty = payload[0] & 1;
  if (s->tty) {
    s->child = forkpty(&s->out, NULL, NULL, &size);
    if (!s->child) {
      setenv("TERM", "xterm-256color", 1);
      exec_child(argv);
    }
    s->in = dup(s->out);
    s->err = -1;
  } else {
    int in[2], out[2], err[2];
    if (pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC) || pipe2(err, O_CLOEXEC)) return -1;
    s->child = fork();
    if (!s->child) {
      setsid();
      dup2(in[0], 0);
      dup2(out[1], 1);
      dup2(err[1], 2);
      exec_child(argv);
    }
    close(in[0]);
    close(out[1]);
    close(err[1]);
    s->in = in[1];
    s->out = out[0];
    s->err = err[0];
  }
  fcntl(s->in, F_SETFL, O_NONBLOCK);
  if (!(payload[0] & 2)) s->input_ended = 1;
  return s->child < 0 ? -1 : 0;
}

static void flush_input(struct session *s) {
  while (s->pending_len && s->in >= 0) {
    ssize_t n = write(s->in, s->pending + s->pending_at, s->pending_len);
    if (n < 0 && errno == EAGAIN) return;
    if (n < 0) {
      s->pending_len = 0;
      break;
    }
    s->pending_at += n;
    s->pending_len -= n;
  }
  if (!s->pending_len && s->input_ended && s->in >= 0) {
    if (s->tty) {
      if (write(s->in, "\004", 1) < 0) return;
      s->input_ended = 0;
    } else {
      close(s->in);
      s->in = -1;
    }
  }
}

static void begin_session(struct session *s, int port) {
  memset(s, 0, sizeof *s);
  s->port = port;
  s->in = s->out = s->err = -1;
}

static void end_session(struct session *s) {
  if (s->child > 0) {
    kill(-s->child, SIGKILL);
    kill(s->child, SIGKILL);
    waitpid(s->child, NULL, 0);
  }
  if (s->in >= 0) close(s->in);
  if (s->out >= 0) close(s->out);
  if (s->err >= 0) close(s->err);
}

static int handle_frame(struct session *s, char type, unsigned char *payload, uint32_t length) {
  switch (type) {
  case 'N': /* The next host is there before we saw the last one go. */
    end_session(s);
    begin_session(s, s->port);
    return send_frame(s->port, 'n', payload, length);
  case 'P': return send_frame(s->port, 'k', "", 0);
  case 'S': return set_clock_and_entropy(payload, length) ? -1 : send_frame(s->port, 'k', "", 0);
  case 'K': return fresh_host_keys() ? -1 : send_frame(s->port, 'k', "", 0);
  case 'O':
    send_frame(s->port, 'k', "", 0);
    return kill(1, SIGUSR2);
  case 'R': return start_command(s, payload, length);
  case 'I':
    memcpy(s->pending, payload, length);
    s->pending_at = 0;
    s->pending_len = length;
    return 0;
  case 'E': s->input_ended = 1; return 0;
  case 'W':
    if (s->tty && length == 4) {
      struct winsize size = {.ws_col = payload[0] << 8 | payload[1], .ws_row = payload[2] << 8 | payload[3]};
      ioctl(s->out, TIOCSWINSZ, &size);
    }
    return 0;
  default: return -1;
  }
}

static int read_frame(struct session *s) {
  static unsigned char payload[FRAME_MAX];
  unsigned char head[5];
  if (read_port(s->port, head, 5)) return -1;
  uint32_t length;
  memcpy(&length, head + 1, 4);
  length = ntohl(length);
  if (length > FRAME_MAX || read_port(s->port, payload, length)) return -1;
  return handle_frame(s, head[0], payload, length);
}

static int forward_output(struct session *s, int *fd, char type) {
  char bytes[OUTPUT_CHUNK];
  ssize_t n = read(*fd, bytes, sizeof bytes);
  if (n > 0) return send_frame(s->port, type, bytes, n);
  close(*fd);
  *fd = -1;
  return 0;
}

static int report_exit(struct session *s) {
  int status = 0;
  waitpid(s->child, &status, 0);
  s->child = 0;
  uint32_t code = htonl(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
  return send_frame(s->port, 'x', &code, 4);
}

static int child_ended(struct session *s) {
  siginfo_t info = {0};
  return !waitid(P_PID, s->child, &info, WEXITED | WNOHANG | WNOWAIT) && info.si_pid == s->child;
}

/* One turn of an open connection; -1 when the host has gone or spoke nonsense. */
static int turn(struct session *s) {
  flush_input(s);
  struct pollfd set[4] = {
      {s->port, s->pending_len ? 0 : POLLIN, 0}, {s->out, POLLIN, 0}, {s->err, POLLIN, 0},
      {s->pending_len ? s->in : -1, POLLOUT, 0}};
  poll(set, 4, s->child && s->out < 0 && s->err < 0 ? 20 : 1000);
  if (set[0].revents & POLLIN) {
    if (read_frame(s)) return -1;
  } else if (set[0].revents & POLLHUP) {
    return -1;
  }
  if (set[1].revents && forward_output(s, &s->out, 'o')) return -1;
  if (set[2].revents && forward_output(s, &s->err, 'e')) return -1;
  if (!s->child || !child_ended(s)) return 0;
  /* What the command itself wrote is in the pipes; a daemon it left behind may hold them open for ever. */
  for (;;) {
    struct pollfd rest[2] = {{s->out, POLLIN, 0}, {s->err, POLLIN, 0}};
    if (poll(rest, 2, 0) <= 0) break;
    if (rest[0].revents && forward_output(s, &s->out, 'o')) return -1;
    if (rest[1].revents && forward_output(s, &s->err, 'e')) return -1;
  }
  return report_exit(s);
}

/* Skips what a dead client may have left, up to the greeting of the one that is there. */
static int greet(int port) {
  static const unsigned char greeting[] = {'N', 0, 0, 0, 16};
  unsigned char window[5] = {0}, nonce[16];
  while (memcmp(window, greeting, 5)) {
    memmove(window, window + 1, 4);
    if (read_port(port, window + 4, 1)) return -1;
  }
  return read_port(port, nonce, 16) || send_frame(port, 'n', nonce, 16);
}

static void serve_connection(int port) {
  static struct session s;
  begin_session(&s, port);
  if (greet(port)) return;
  while (!turn(&s))
    ;
  end_session(&s);
}

/* A port has the number that the host gave it, from 1; its device, the one that the driver found it at. */
static int open_node(int number) {
  int port = -1, device, found;
  DIR *dev = opendir("/dev");
  for (struct dirent *entry; port < 0 && dev && (entry = readdir(dev));)
    if (sscanf(entry->d_name, "vport%dp%d", &device, &found) == 2 && found == number)
      port = openat(dirfd(dev), entry->d_name, O_RDWR | O_NONBLOCK | O_CLOEXEC);
  if (dev) closedir(dev);
  return port;
}

/* The kernel makes the node before the driver knows the port: an open in between fails with ENXIO, and soon succeeds. */
static int open_port(int number) {
  int port;
  for (int tries = 0; (port = open_node(number)) < 0 && tries < 5000; tries++) usleep(tries < 500 ? 2000 : 20000);
  return port;
}

static void serve_port(int number) {
  default_signals();
  signal(SIGPIPE, SIG_IGN);
  sigset_t io;
  sigemptyset(&io);
  sigaddset(&io, SIGIO);
  sigprocmask(SIG_BLOCK, &io, NULL);
  int port = open_port(number);
  if (port < 0) {
    say("tart-qemu: no port %d: %m\n", number);
    _exit(1);
  }
  fcntl(port, F_SETOWN, getpid());
  fcntl(port, F_SETFL, O_NONBLOCK | O_ASYNC);
  for (;;) {
    struct pollfd poller = {port, POLLIN, 0};
    poll(&poller, 1, 0);
    /* Without a host the port also reads as ready, and gives nothing. */
    if (poller.revents & POLLHUP) {
      struct timespec limit = {5, 0};
      sigtimedwait(&io, NULL, &limit);
      continue;
    }
    serve_connection(port);
  }
}

static pid_t start_port(int number) {
  pid_t pid = fork();
  if (!pid) serve_port(number);
  return pid;
}

static void grow_disk(void) {
  char *argv[] = {"/usr/local/sbin/grow-disk", NULL};
  if (!access(argv[0], X_OK)) spawn(argv);
}

int main(void) {
  sigset_t set;
  sigfillset(&set);
  sigprocmask(SIG_BLOCK, &set, NULL);
  mount("devtmpfs", "/dev", "devtmpfs", 0, "");
  mkdir("/proc", 0755);
  mount("proc", "/proc", "proc", 0, "");
  int fd = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
  if (fd < 0 || read(fd, cmdline, sizeof cmdline - 1) < 0) say("tart-qemu: no command line\n");
  close(fd);
  insert_boot_modules();
  int console_module = open_module("virtio_console");
  enter_disk();
  mount_rest();
  sethostname("linux", 5);
  const char *delay = option("tart.delay=");
  if (delay) sleep(atoi(delay));
  network_up();
  say("tart-qemu: network up\n");
  pid_t sshd = start_sshd();
  report_sshd();
  insert_module_fd(console_module);
  pid_t ports[PORTS];
  for (int at = 0; at < PORTS; at++) ports[at] = start_port(at + 1);
  write_file("/proc/sys/kernel/printk", "4");
  grow_disk();
  for (;;) {
    int number = 0;
    sigset_t wanted;
    sigemptyset(&wanted);
    sigaddset(&wanted, SIGCHLD);
    sigaddset(&wanted, SIGUSR2);
    sigaddset(&wanted, SIGTERM);
    sigwait(&wanted, &number);
    if (number != SIGCHLD) power_off();
    for (pid_t pid; (pid = waitpid(-1, NULL, WNOHANG)) > 0;) {
      if (pid == sshd) {
        usleep(20000);
        sshd = start_sshd();
      }
      for (int at = 0; at < PORTS; at++)
        if (pid == ports[at]) ports[at] = start_port(at + 1);
    }
  }
}
