/* crr: connect, request, response, close; over and over. Counts whole exchanges a second.
 *
 * usage: crr server PORT                              (0 = any free port)
 *        crr client ADDR PORT [-c OPEN] [-t SECONDS] [-n COUNT]
 *   -c   connections open at a time (16)
 *   -t   how long to run (3); with -n the deadline by which all must be done
 *   -n   stop after so many exchanges
 * The server prints "ready PORT" and runs until SIGTERM. The client prints one JSON line and exits
 * 1 when nothing got through, or with -n when not everything did. Exit status 2: usage.
 *
 * The request and the response are one byte each, as in netperf's TCP_CRR: nothing is ever half
 * read, and what is measured is the price of a connection.
 *
 * Who closes first? Here the server, like an HTTP/1.0 server. The side that closes first keeps
 * TIME_WAIT for 60 s: were it the client, its ports (28 k by default, 64 k at most) would be gone
 * within seconds at 10 k connections a second, and the run would measure the kernel's search for a
 * free port. A close by RST (SO_LINGER 0) would avoid that too, but no real client does it, and a
 * director would see half of a TCP life only. With the server closing, a client port is free again
 * at once; when it comes round, the server's TIME_WAIT takes the SYN because its timestamp is newer
 * (RFC 6191).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { OPEN_MAX_CLIENT = 1024, EVENTS = 256, BACKLOG = 4096, DRAIN_MS = 100 };

enum step { IDLE, CONNECTING, WAITING, ANSWERED };

struct slot {
    int fd;
    enum step step;
};

struct client {
    struct sockaddr_in target;
    int poller;
    int open_max;
    long wanted;    /* exchanges to make, -1 = until the deadline */
    double seconds;
    long started, done, errors;
    struct slot slots[OPEN_MAX_CLIENT];
};

static void die(const char *what)
{
    fprintf(stderr, "crr: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double monotonic(void)
{
    struct timespec at;

    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + (double)at.tv_nsec / 1e9;
}

/* One byte in, one byte out, close: returns 0 when the request is still on its way. */
static int answer(int fd)
{
    char request;
    ssize_t length = recv(fd, &request, 1, 0);

    if (length < 0 && errno == EAGAIN)
        return 0;
    if (length == 1)
        (void)send(fd, &request, 1, MSG_NOSIGNAL);
    close(fd);
    return 1;
}

static void accept_all(int listener, int poller)
{
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};

        if (fd < 0)
            return;
        if (!answer(fd) && epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event) < 0)
            close(fd);
    }
}

static void serve(unsigned short port)
{
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(port)};
    socklen_t size = sizeof here;
    struct epoll_event events[EVENTS];
    int on = 1, poller = epoll_create1(EPOLL_CLOEXEC);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener};

    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&here, size) < 0 || listen(listener, BACKLOG) < 0)
        die("listen");
    getsockname(listener, (struct sockaddr *)&here, &size);
    if (epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event) < 0)
        die("epoll_ctl");
    printf("ready %u\n", ntohs(here.sin_port));
    fflush(stdout);
    for (;;) {
        int count = epoll_wait(poller, events, EVENTS, -1);

        for (int i = 0; i < count; i++) {
            if (events[i].data.fd == listener)
                accept_all(listener, poller);
            else
                (void)answer(events[i].data.fd);
        }
    }
}

static void start_exchange(struct client *self, int at)
{
    struct slot *slot = &self->slots[at];
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET,
                                .data.u32 = (unsigned)at};

    slot->step = IDLE;
    if (self->wanted >= 0 && self->started >= self->wanted)
        return;
    slot->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (slot->fd < 0)
        die("socket");
    if (connect(slot->fd, (struct sockaddr *)&self->target, sizeof self->target) < 0
        && errno != EINPROGRESS)
        die("connect"); /* EADDRNOTAVAIL, ENETUNREACH: no figure would mean much */
    if (epoll_ctl(self->poller, EPOLL_CTL_ADD, slot->fd, &event) < 0)
        die("epoll_ctl");
    slot->step = CONNECTING;
    self->started++;
}

/* Moves one exchange as far as it goes: 1 = over well, -1 = over with an error, 0 = not over. */
static int advance(struct slot *slot, unsigned events)
{
    char byte = 'r';

    if (slot->step == CONNECTING) {
        if (events & (EPOLLERR | EPOLLHUP))
            return -1;
        if (!(events & EPOLLOUT))
            return 0;
        if (send(slot->fd, &byte, 1, MSG_NOSIGNAL) != 1)
            return -1;
        slot->step = WAITING;
        return 0; /* the answer cannot be here yet */
    }
    for (;;) {
        ssize_t length = recv(slot->fd, &byte, 1, 0);

        if (length < 0)
            return errno == EAGAIN ? 0 : -1;
        if (length == 0)
            return slot->step == ANSWERED ? 1 : -1;
        slot->step = ANSWERED;
    }
}

static double run_exchanges(struct client *self)
{
    struct epoll_event events[EVENTS];
    double begun = monotonic(), now = begun;

    for (int i = 0; i < self->open_max; i++)
        start_exchange(self, i);
    while (now - begun < self->seconds
           && (self->wanted < 0 || self->done + self->errors < self->wanted)) {
        int count = epoll_wait(self->poller, events, EVENTS, DRAIN_MS);

        for (int i = 0; i < count; i++) {
            int at = (int)events[i].data.u32;
            int over = advance(&self->slots[at], events[i].events);

            if (!over)
                continue;
            close(self->slots[at].fd);
            if (over > 0)
                self->done++;
            else
                self->errors++;
            start_exchange(self, at);
        }
        now = monotonic();
    }
    return now - begun;
}

static int usage(void)
{
    fprintf(stderr, "usage: crr server PORT\n"
                    "       crr client ADDR PORT [-c OPEN] [-t SECONDS] [-n COUNT]\n");
    return 2;
}

static int run_client(int argc, char **argv)
{
    static struct client self = {.open_max = 16, .wanted = -1, .seconds = 3};
    int option;

    while ((option = getopt(argc, argv, "c:t:n:")) != -1) {
        if (option == 'c')
            self.open_max = atoi(optarg);
        else if (option == 't')
            self.seconds = atof(optarg);
        else if (option == 'n')
            self.wanted = atol(optarg);
        else
            return usage();
    }
    self.target.sin_family = AF_INET;
    if (argc - optind != 3 || self.open_max < 1 || self.open_max > OPEN_MAX_CLIENT
        || inet_pton(AF_INET, argv[optind + 1], &self.target.sin_addr) != 1)
        return usage();
    self.target.sin_port = htons((unsigned short)atoi(argv[optind + 2]));
    self.poller = epoll_create1(EPOLL_CLOEXEC);

    double seconds = run_exchanges(&self);
    printf("{\"exchanges\":%ld,\"errors\":%ld,\"unfinished\":%ld,\"seconds\":%.6f,\"rate\":%.1f}\n",
           self.done, self.errors, self.started - self.done - self.errors, seconds,
           (double)self.done / seconds);
    return self.wanted >= 0 ? self.done != self.wanted : self.done == 0;
}

int main(int argc, char **argv)
{
    prctl(PR_SET_PDEATHSIG, SIGTERM); /* a killed harness must not leave a server behind */
    if (argc == 3 && !strcmp(argv[1], "server"))
        serve((unsigned short)atoi(argv[2])); /* until SIGTERM */
    if (argc > 3 && !strcmp(argv[1], "client"))
        return run_client(argc, argv);
    return usage();
}
