/* reflector: frames copied between two TAPs by a bare read() -> write() loop.
 *
 * This is the limit of the device, the figure that tunlb is compared with: nothing is parsed or
 * changed. It may use only what tunlb uses too (epoll, non-blocking fds, one read() and one
 * write() a frame, bursts of 64, the same offloads), so the ratio shows the cost of the
 * pipeline alone.
 *
 * usage: reflector [-n | -c] OUT IN
 *   -n   no vnet header and no offloads: the kernel segments and checksums every frame
 *   -c   offloaded TCP over IPv4 from OUT is cut into its segments, each one write(): the limit
 *        of what puts every packet into a tunnel, which no offload goes through. A segment is
 *        made where its payload lies, and its checksum stays partial, as tunlb does it.
 * Creates or attaches both TAPs, prints "ready", runs until SIGTERM or SIGINT and prints what it
 * moved as one JSON line. Exit status 2: usage; 1: the device failed.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <signal.h>
#include <stdint.h>
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
    L3 = VNET_HDR + 14, /* where an untagged frame's network header is */
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

static unsigned get16(const unsigned char *at)
{
    return (unsigned)at[0] << 8 | at[1];
}

static void put16(unsigned char *at, unsigned value)
{
    at[0] = (unsigned char)(value >> 8);
    at[1] = (unsigned char)value;
}

static unsigned fold(unsigned sum)
{
    sum = (sum & 0xffff) + (sum >> 16);
    return (sum & 0xffff) + (sum >> 16);
}

/* The length of the headers of a frame that can be cut; 0 of all others. */
static size_t cuttable(const unsigned char *frame, size_t length)
{
    const struct virtio_net_hdr *vnet = (const void *)frame;
    size_t l4, headers;

    if ((vnet->gso_type & ~VIRTIO_NET_HDR_GSO_ECN) != VIRTIO_NET_HDR_GSO_TCPV4)
        return 0;
    if (length < L3 + 40 || get16(frame + 12 + VNET_HDR) != 0x0800)
        return 0;
    l4 = L3 + (frame[L3] & 15u) * 4;
    if (length < l4 + 20)
        return 0;
    headers = l4 + (frame[l4 + 12] >> 4) * 4u;
    return headers < length && headers <= 256 && vnet->gso_size ? headers : 0;
}

/* Each segment of a frame as a write() of its own; 0 or -1 when one was refused. */
static int cut(unsigned char *frame, size_t headers, size_t length, int to)
{
    unsigned char saved[256];
    const size_t l4 = L3 + (frame[L3] & 15u) * 4;
    const unsigned size = ((struct virtio_net_hdr *)(void *)frame)->gso_size;
    const unsigned whole = (unsigned)(length - l4);
    int result = 0;

    memcpy(saved, frame, headers);
    for (size_t at = headers, count = 0; at < length; at += size, count++) {
        size_t payload = length - at < size ? length - at : size;
        unsigned char *made = frame + at - headers, *ip = made + L3, *tcp = made + l4;
        struct virtio_net_hdr vnet;
        uint32_t sequence;

        memcpy(made, saved, headers);
        memcpy(&vnet, made, VNET_HDR);
        vnet.gso_type = VIRTIO_NET_HDR_GSO_NONE;
        vnet.gso_size = 0;
        memcpy(made, &vnet, VNET_HDR);
        put16(ip + 2, (unsigned)(headers - L3 + payload));
        put16(ip + 4, get16(ip + 4) + (unsigned)count);
        put16(ip + 10, ~fold((~get16(saved + L3 + 10) & 0xffff) + (~get16(saved + L3 + 2) & 0xffff)
                             + get16(ip + 2) + fold((~get16(saved + L3 + 4) & 0xffff)
                             + get16(ip + 4))));
        memcpy(&sequence, tcp + 4, 4);
        sequence = htonl(ntohl(sequence) + (uint32_t)count * size);
        memcpy(tcp + 4, &sequence, 4);
        if (at + payload < length)
            tcp[13] &= (unsigned char)~0x09; /* FIN and PSH are the last one's */
        if (count)
            tcp[13] &= 0x7f; /* and CWR the first one's */
        put16(tcp + 16, fold(get16(tcp + 16) + (~whole & 0xffff)
                             + (unsigned)(headers - l4 + payload)));
        if (write(to, made, headers + payload) < 0)
            result = -1;
    }
    return result;
}

/* Up to BURST frames; the level-triggered epoll brings us back for the rest. */
static void drain(struct side *from, int to, int cutting)
{
    static unsigned char frame[FRAME_MAX];

    for (int i = 0; i < BURST; i++) {
        ssize_t length = read(from->fd, frame, sizeof frame);
        size_t headers;

        if (length < 0) {
            if (errno == EAGAIN || errno == EINTR)
                return;
            die(from->name, "read");
        }
        headers = cutting ? cuttable(frame, (size_t)length) : 0;
        if (headers ? cut(frame, headers, (size_t)length, to) < 0
                    : write(to, frame, (size_t)length) != length) {
            from->refused++;
            continue;
        }
        from->frames++;
        from->bytes += (unsigned long long)length;
    }
}

static void reflect(struct side sides[2], int cutting)
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

            drain(&sides[at], sides[!at].fd, cutting && !at);
        }
    }
}

int main(int argc, char **argv)
{
    int offload = 1, cutting = 0, option;
    struct sigaction action = {.sa_handler = on_signal};
    sigset_t blocked;

    while ((option = getopt(argc, argv, "nc")) != -1) {
        if (option == 'n')
            offload = 0;
        else if (option == 'c')
            cutting = 1;
        else
            return 2;
    }
    if (argc - optind != 2 || (cutting && !offload)) {
        fprintf(stderr, "usage: reflector [-n | -c] OUT IN\n");
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
    reflect(sides, cutting);
    printf("{\"inbound\":{\"frames\":%llu,\"bytes\":%llu,\"refused\":%llu},"
           "\"outbound\":{\"frames\":%llu,\"bytes\":%llu,\"refused\":%llu}}\n",
           sides[0].frames, sides[0].bytes, sides[0].refused,
           sides[1].frames, sides[1].bytes, sides[1].refused);
    return 0;
}
