/* reflector: frames copied between two TAPs by a bare read() -> write() loop.
 *
 * This is the limit of the device, the figure that tunlb is compared with: nothing is parsed or
 * changed. It may use only what tunlb uses too (epoll, non-blocking fds, one read() and one
 * write() a frame, bursts of 64, the same offloads), so the ratio shows the cost of the
 * pipeline alone.
 *
 * usage: reflector [-n] OUT IN
 *   -n   no vnet header and no offloads: the kernel segments and checksums every frame
 * Creates or attaches both TAPs, prints "ready", runs until SIGTERM or SIGINT and prints what it
 * moved as one JSON line. Exit status 2: usage; 1: the device failed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <unistd.h>

/* Absent from headers older than Linux 6.2, where the kernel refuses the bits anyway. */
#ifndef TUN_F_USO4
#define TUN_F_USO4 0x20
#define TUN_F_USO6 0x40
#endif

enum {
    BURST = 64,         /* frames of one wake-up, tunlb's own budget */
    VNET_HDR = 10,      /* struct virtio_net_hdr without num_buffers */
    FRAME_MAX = VNET_HDR + 18 + 65535,  /* header, Ethernet with a VLAN tag, a whole GSO packet */
};

struct side {
    int fd;
    const char *name;
    unsigned long long frames, bytes; /* read here and written to the other side */
    unsigned long long refused;       /* write() on the other side failed: counted, not retried */
};

static volatile sig_atomic_t stopping;

static void on_signal(int signum)
{
    (void)signum;
    stopping = 1;
}

static void die(const char *name, const char *what)
{
    fprintf(stderr, "reflector: %s: %s: %s\n", name, what, strerror(errno));
    exit(1);
}

static int open_tap(const char *name, int offload)
{
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI};
    int header = VNET_HDR;
    unsigned flags = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);

    if (fd < 0)
        die(name, "open /dev/net/tun");
    if (offload)
        request.ifr_flags |= IFF_VNET_HDR;
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    if (ioctl(fd, TUNSETIFF, &request) < 0)
        die(name, "TUNSETIFF");
    if (!offload)
        return fd;
    if (ioctl(fd, TUNSETVNETHDRSZ, &header) < 0)
        die(name, "TUNSETVNETHDRSZ");
    if (ioctl(fd, TUNSETOFFLOAD, flags | TUN_F_USO4 | TUN_F_USO6) < 0
        && ioctl(fd, TUNSETOFFLOAD, flags) < 0)
        die(name, "TUNSETOFFLOAD");
    return fd;
}

/* Up to BURST frames; the level-triggered epoll brings us back for the rest. */
static void drain(struct side *from, int to)
{
    static unsigned char frame[FRAME_MAX];

    for (int i = 0; i < BURST; i++) {
        ssize_t length = read(from->fd, frame, sizeof frame);

        if (length < 0) {
            if (errno == EAGAIN || errno == EINTR)
                return;
            die(from->name, "read");
        }
        if (write(to, frame, (size_t)length) != length) {
            from->refused++;
            continue;
        }
        from->frames++;
        from->bytes += (unsigned long long)length;
    }
}

static void reflect(struct side sides[2])
{
    struct epoll_event events[2];
    sigset_t open_mask;
    int poller = epoll_create1(EPOLL_CLOEXEC);

    sigemptyset(&open_mask);
    for (unsigned i = 0; i < 2; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = i};

        if (epoll_ctl(poller, EPOLL_CTL_ADD, sides[i].fd, &event) < 0)
            die(sides[i].name, "epoll_ctl");
    }
    while (!stopping) {
        int count = epoll_pwait(poller, events, 2, -1, &open_mask);

        for (int i = 0; i < count; i++) {
            unsigned at = events[i].data.u32;

            drain(&sides[at], sides[!at].fd);
        }
    }
}

int main(int argc, char **argv)
{
    int offload = 1, option;
    struct sigaction action = {.sa_handler = on_signal};
    sigset_t blocked;

    while ((option = getopt(argc, argv, "n")) != -1) {
        if (option != 'n')
            return 2;
        offload = 0;
    }
    if (argc - optind != 2) {
        fprintf(stderr, "usage: reflector [-n] OUT IN\n");
        return 2;
    }
    prctl(PR_SET_PDEATHSIG, SIGTERM); /* a killed harness must not leave a reflector behind */
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGTERM);
    sigaddset(&blocked, SIGINT);
    sigprocmask(SIG_BLOCK, &blocked, NULL); /* seen only inside epoll_pwait: no lost signal */
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);

    struct side sides[2] = {{.name = argv[optind]}, {.name = argv[optind + 1]}};
    for (int i = 0; i < 2; i++)
        sides[i].fd = open_tap(sides[i].name, offload);
    puts("ready");
    fflush(stdout);
    reflect(sides);
    printf("{\"inbound\":{\"frames\":%llu,\"bytes\":%llu,\"refused\":%llu},"
           "\"outbound\":{\"frames\":%llu,\"bytes\":%llu,\"refused\":%llu}}\n",
           sides[0].frames, sides[0].bytes, sides[0].refused,
           sides[1].frames, sides[1].bytes, sides[1].refused);
    return 0;
}
