/* The floor under a sandbox's start: what the kernel takes for the same isolation, and nothing else.
 *
 *   floor LOWER N [SHELL]
 *
 * N times: clone into new user, mount, pid, network, ipc, uts and cgroup namespaces, write a map of
 * one id, mount a tmpfs and on it an overlay whose lower layer is the folder LOWER, make that the
 * root, mount /proc, and execute SHELL -c 'echo hi' (default /bin/sh). With LOWER "host" there is
 * an overlay of /usr alone and the shell is the host's. Prints a line for each round: microseconds
 * from before the clone to the first byte of output, and to the end of the process.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define NAMESPACES                                                                               \
  (CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS |       \
   CLONE_NEWCGROUP)

static const char *lower, *shell = "/bin/sh";
static uid_t uid;
static gid_t gid;

static void check(int bad, const char *what) {
  if (!bad) return;
  fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
  _exit(1);
}

static void put(const char *path, const char *text) {
  int fd = open(path, O_WRONLY | O_CLOEXEC);
  check(fd < 0 || write(fd, text, strlen(text)) < 0, path);
  close(fd);
}

static void write_maps(void) {
  char line[64];
  put("/proc/self/setgroups", "deny");
  snprintf(line, sizeof line, "0 %u 1\n", uid);
  put("/proc/self/uid_map", line);
  snprintf(line, sizeof line, "0 %u 1\n", gid);
  put("/proc/self/gid_map", line);
}

static void mount_root(void) {
  char options[4200];
  int on_host = strcmp(lower, "host") == 0;
  check(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "private");
  int pinned = open(on_host ? "/usr" : lower, O_PATH | O_DIRECTORY | O_CLOEXEC);
  check(pinned < 0, lower);
  check(mount("floor", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755"), "tmpfs");
  check(mkdir("/tmp/u", 0755) || mkdir("/tmp/w", 0755) || mkdir("/tmp/r", 0755), "mkdir");
  snprintf(options, sizeof options,
           "lowerdir=/proc/self/fd/%d,upperdir=/tmp/u,workdir=/tmp/w,userxattr", pinned);
  check(mount("floor", on_host ? "/usr" : "/tmp/r", "overlay", 0, options), "overlay");
  if (on_host) return;
  /* before the old root goes: the kernel grants a new /proc only where one is fully visible */
  check(mount("proc", "/tmp/r/proc", "proc", 0, NULL), "proc");
  check(chdir("/tmp/r") || syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH), "pivot");
  check(chdir("/"), "chdir");
}

static double microseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1e6 + now.tv_nsec / 1e3;
}

static void round_of(void) {
  int ends[2], status;
  char byte;
  check(pipe2(ends, O_CLOEXEC), "pipe");
  double began = microseconds();
  pid_t pid = (pid_t)syscall(SYS_clone, NAMESPACES | SIGCHLD, NULL, NULL, NULL, NULL);
  check(pid < 0, "clone");
  if (pid == 0) {
    write_maps();
    mount_root();
    dup2(ends[1], 1);
    execl(shell, shell, "-c", "echo hi", (char *)NULL);
    check(1, shell);
  }
  close(ends[1]);
  check(read(ends[0], &byte, 1) != 1, "no output");
  double spoke = microseconds();
  check(waitpid(pid, &status, 0) < 0 || status != 0, "wait");
  printf("%.1f %.1f\n", spoke - began, microseconds() - began);
  close(ends[0]);
}

int main(int count, char **words) {
  if (count < 3) return 2;
  lower = words[1];
  if (count > 3) shell = words[3];
  uid = getuid();
  gid = getgid();
  for (int n = atoi(words[2]); n > 0; n--) round_of();
  return 0;
}
