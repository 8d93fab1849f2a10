/* udpflood: small UDP packets as fast as one core sends them, and a sink that counts what arrives.
 *
 * usage: udpflood sink PORT                           (0 = any free port)
 *        udpflood send ADDR PORT [-f FLOWS] [-t SECONDS] [-n COUNT] [-r RATE]
 *   -f   flows = source ports (8)
 *   -t   how long to send (3)
 *   -n   stop after so many packets
 *   -r   packets a second (0: as many as it can)
 * The sink prints "ready PORT" and counts until SIGTERM. It then goes on until nothing has come for
 * 100 ms, because queues on the way may still be full, and prints one JSON line: packets that
 * came, how many different ones, the time from the first to the last, and how many its own socket
 * had no room for. The sender prints one JSON line. Exit status 2: usage; 1: a socket failed.
 *
 * Without -r the sender does not pace itself: what is measured is the rate delivered at overload,
 * and the surplus is lost in the rings on the way. Packets are numbered, and the sink also says how
 * many different ones it saw: what is missing of them was lost, and not made up for by a copy.
 * 18 bytes of payload make the smallest Ethernet frame (60 bytes without the frame check sequence).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/sock_diag.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { PAYLOAD = 18, BATCH = 32, FLOWS_MAX = 256, SINK_BUFFER = 32 << 20, POLL_US = 50000 };
/* After SIGTERM the sink ends with the first silence of SILENCES * POLL_US, or after PATIENCE_S. */
enum { SILENCES = 2, PATIENCE_S = 5 };
enum { NUMBERS_MAX = 1 << 26 }; /* packets with a higher number are not told apart */

static volatile sig_atomic_t stopping;

static void on_signal(int signum)
{
    (void)signum;
    stopping = 1;
}

static void die(const char *what)
{
    fprintf(stderr, "udpflood: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double monotonic(void)
{
    struct timespec at;

    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + (double)at.tv_nsec / 1e9;
}

/* BATCH messages of PAYLOAD bytes. A longer packet is cut on arrival, which is all that counts. */
static void fill_batch(struct mmsghdr *messages, struct iovec *parts, char (*payloads)[PAYLOAD])
{
    memset(messages, 0, BATCH * sizeof *messages);
    for (int i = 0; i < BATCH; i++) {
        parts[i] = (struct iovec){.iov_base = payloads[i], .iov_len = PAYLOAD};
        messages[i].msg_hdr.msg_iov = &parts[i];
        messages[i].msg_hdr.msg_iovlen = 1;
    }
}

static int open_sink(unsigned short port)
{
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(port)};
    struct timeval wait = {.tv_usec = POLL_US}; /* bounds how long a SIGTERM can go unseen */
    socklen_t size = sizeof here;
    int bytes = SINK_BUFFER;
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    if (fd < 0 || bind(fd, (struct sockaddr *)&here, size) < 0)
        die("bind");
    /* The sink must not be what loses packets; without privilege the system's limit has to do. */
    if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof bytes) < 0)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes);
    if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait) < 0)
        die("SO_RCVTIMEO");
    getsockname(fd, (struct sockaddr *)&here, &size);
    printf("ready %u\n", ntohs(here.sin_port));
    fflush(stdout);
    return fd;
}

/* Packets that came while the socket's buffer was full: the sink lost them, not the way to it. */
static uint32_t dropped(int fd)
{
    uint32_t info[SK_MEMINFO_VARS] = {0};
    socklen_t size = sizeof info;

    return getsockopt(fd, SOL_SOCKET, SO_MEMINFO, info, &size) < 0 ? 0 : info[SK_MEMINFO_DROPS];
}

/* How many of these packets bear a number that was not seen before. */
static unsigned fresh(const struct mmsghdr *messages, int count)
{
    static unsigned char seen[NUMBERS_MAX / 8];
    unsigned found = 0;

    for (int i = 0; i < count; i++) {
        unsigned long long number;

        if (messages[i].msg_len < sizeof number)
            continue;
        memcpy(&number, messages[i].msg_hdr.msg_iov->iov_base, sizeof number);
        if (number >= NUMBERS_MAX || seen[number / 8] >> number % 8 & 1)
            continue;
        seen[number / 8] |= (unsigned char)(1 << number % 8);
        found++;
    }
    return found;
}

static int run_sink(unsigned short port)
{
    static char payloads[BATCH][PAYLOAD];
    struct mmsghdr messages[BATCH];
    struct iovec parts[BATCH];
    struct sigaction action = {.sa_handler = on_signal};
    unsigned long long packets = 0, distinct = 0;
    double first = 0, last = 0, ending = 0;
    int silences = 0;

    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    int fd = open_sink(port);
    fill_batch(messages, parts, payloads);
    while (silences < SILENCES) {
        int count = recvmmsg(fd, messages, BATCH, MSG_WAITFORONE, NULL);

        if (stopping && ending == 0)
            ending = monotonic() + PATIENCE_S;
        if (count > 0) {
            silences = 0;
            last = monotonic();
            if (packets == 0)
                first = last;
            packets += (unsigned)count;
            distinct += fresh(messages, count);
        } else if (count < 0 && errno != EAGAIN && errno != EINTR) {
            die("recvmmsg");
        } else if (stopping && errno == EAGAIN) {
            silences++;
        }
        if (ending > 0 && monotonic() > ending)
            break;
    }
    printf("{\"packets\":%llu,\"distinct\":%llu,\"seconds\":%.6f,\"dropped\":%u}\n", packets,
           distinct, last - first, dropped(fd));
    return 0;
}

static int usage(void)
{
    fprintf(stderr, "usage: udpflood sink PORT\n"
                    "       udpflood send ADDR PORT [-f FLOWS] [-t SECONDS] [-n COUNT] "
                    "[-r RATE]\n");
    return 2;
}

static void sleep_until(double when)
{
    double left = when - monotonic();

    if (left > 0) {
        struct timespec time = {.tv_sec = (time_t)left,
                                .tv_nsec = (long)((left - (double)(time_t)left) * 1e9)};
        nanosleep(&time, NULL);
    }
}

/* Packets for one call: at a given rate few, so that they come evenly, 10,000 calls a second. */
static long long batch_size(double rate)
{
    double evenly = rate / 10000;

    return rate <= 0 || evenly > BATCH ? BATCH : evenly < 1 ? 1 : (long long)evenly;
}

static void flood(const int *fds, int flows, double seconds, long long wanted, double rate)
{
    static char payloads[BATCH][PAYLOAD];
    struct mmsghdr messages[BATCH];
    struct iovec parts[BATCH];
    long long sent = 0, errors = 0, batch = batch_size(rate);
    double begun = monotonic(), now = begun;

    fill_batch(messages, parts, payloads);
    prctl(PR_SET_TIMERSLACK, 1); /* sleeps end when they should, not up to 50 us later */
    for (int at = 0; now - begun < seconds; at = (at + 1) % flows) {
        long long left = wanted < 0 ? batch : wanted - sent;

        if (left == 0)
            break;
        if (rate > 0)
            sleep_until(begun + (double)sent / rate);
        for (unsigned long long i = 0; i < BATCH; i++) {
            unsigned long long number = (unsigned long long)sent + i;

            memcpy(payloads[i], &number, sizeof number);
        }
        int count = sendmmsg(fds[at], messages, (unsigned)(left < batch ? left : batch), 0);

        if (count > 0)
            sent += count;
        else
            errors++; /* ENOBUFS, or an ICMP error that came back: the overload goes on */
        now = monotonic();
    }
    printf("{\"packets\":%lld,\"errors\":%lld,\"seconds\":%.6f}\n", sent, errors, now - begun);
}

static int run_sender(int argc, char **argv)
{
    struct sockaddr_in target = {.sin_family = AF_INET};
    int fds[FLOWS_MAX], flows = 8, option;
    long long wanted = -1;
    double seconds = 3, rate = 0;

    while ((option = getopt(argc, argv, "f:t:n:r:")) != -1) {
        if (option == 'f')
            flows = atoi(optarg);
        else if (option == 't')
            seconds = atof(optarg);
        else if (option == 'n')
            wanted = atoll(optarg);
        else if (option == 'r')
            rate = atof(optarg);
        else
            return usage();
    }
    if (argc - optind != 3 || flows < 1 || flows > FLOWS_MAX
        || inet_pton(AF_INET, argv[optind + 1], &target.sin_addr) != 1)
        return usage();
    target.sin_port = htons((unsigned short)atoi(argv[optind + 2]));
    for (int i = 0; i < flows; i++) {
        fds[i] = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        if (fds[i] < 0 || connect(fds[i], (struct sockaddr *)&target, sizeof target) < 0)
            die("connect");
    }
    flood(fds, flows, seconds, wanted, rate);
    return 0;
}

int main(int argc, char **argv)
{
    prctl(PR_SET_PDEATHSIG, SIGTERM); /* a killed harness must not leave a sink behind */
    if (argc == 3 && !strcmp(argv[1], "sink"))
        return run_sink((unsigned short)atoi(argv[2]));
    if (argc > 3 && !strcmp(argv[1], "send"))
        return run_sender(argc, argv);
    return usage();
}
