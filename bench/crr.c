/* crr: connect, request, response, close; over and over. Counts whole exchanges, or times them.
 *
 * usage: crr server PORT                              (0 = any free port)
 *        crr http PORT
 *        crr client ADDR PORT [-c OPEN] [-t SECONDS] [-n COUNT] [-r RATE]
 *        crr client ADDR PORT -l [-t SECONDS] [-n COUNT]
 *   -c   connections open at a time (16)
 *   -t   how long to run (3); with -n the deadline by which all must be done
 *   -n   stop after so many exchanges
 *   -r   exchanges to begin a second (0: as many as it can)
 *   -l   one at a time: how long each connect() took, and how long until its response was there
 * A server prints "ready PORT" and runs until SIGTERM. The client, which SIGTERM ends early, prints
 * one JSON line and exits 1 when nothing got through, or with -n when not everything did. Exit
 * status 2: usage.
 *
 * The request and the response are one byte each, as in netperf's TCP_CRR: nothing is ever half
 * read, and what is measured is the price of a connection. The server called `http` answers real
 * HTTP clients instead, with a few bytes and as little work, so that they measure the way and not
 * the server.
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
#include <limits.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { OPEN_MAX_CLIENT = 1024, EVENTS = 256, BACKLOG = 4096, DRAIN_MS = 100 };
enum { REQUEST_MAX = 4096, CLOCK = OPEN_MAX_CLIENT, TIMES_MAX = 1 << 20 };

enum step { CONNECTING, WAITING, ANSWERED };

struct slot {
    int fd;
    enum step step;
};

struct client {
    struct sockaddr_in target;
    int poller, clock;
    int open_max;
    long wanted;    /* exchanges to make, -1 = until the deadline */
    double seconds;
    double rate;    /* exchanges to begin a second, 0 = at once when one is over */
    long allowed;   /* exchanges that may have begun by now */
    long started, done, errors;
    struct slot slots[OPEN_MAX_CLIENT];
    int idle[OPEN_MAX_CLIENT], idle_count;
};

typedef int answer_function(int fd);

static volatile sig_atomic_t stopping;

static void on_signal(int signum)
{
    (void)signum;
    stopping = 1;
}

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
static int answer_byte(int fd)
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

/* A whole HTTP request in, an answer out, close. */
static int answer_http(int fd)
{
    static const char reply[] = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n"
                                "\r\nok\n";
    char request[REQUEST_MAX];
    ssize_t length = recv(fd, request, sizeof request, MSG_PEEK);

    if (length < 0 && errno == EAGAIN)
        return 0;
    if (length > 0 && length < REQUEST_MAX && !memmem(request, (size_t)length, "\r\n\r\n", 4))
        return 0;
    if (length > 0) {
        /* what is left unread would make the close a RST */
        (void)recv(fd, request, (size_t)length, 0);
        /* MSG_MORE: the FIN goes with the answer. A client that has seen all that Content-Length
           promised closes at once, and would be the first to close if our FIN came later. */
        (void)send(fd, reply, sizeof reply - 1, MSG_NOSIGNAL | MSG_MORE);
    }
    close(fd);
    return 1;
}

static void accept_all(int listener, int poller, answer_function *answer)
{
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        /* edges: half a request stays unread, and must not report itself until more of it comes */
        struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.fd = fd};

        if (fd < 0)
            return;
        if (!answer(fd) && epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event) < 0)
            close(fd);
    }
}

static void serve(unsigned short port, answer_function *answer)
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
                accept_all(listener, poller, answer);
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

static void start_what_may(struct client *self)
{
    while (self->idle_count > 0 && self->started < self->allowed
           && (self->wanted < 0 || self->started < self->wanted))
        start_exchange(self, self->idle[--self->idle_count]);
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

/* A clock that ticks once for each exchange that may begin: evenly, where a time-out of epoll_wait
   would let several begin together once a millisecond. What no slot was free for is made up. */
static void start_clock(struct client *self)
{
    double interval = 1 / self->rate;
    struct timespec time = {.tv_sec = (time_t)interval,
                            .tv_nsec = (long)((interval - (double)(time_t)interval) * 1e9)};
    struct itimerspec ticks = {.it_interval = time, .it_value = time};
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = CLOCK};

    self->clock = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (self->clock < 0 || timerfd_settime(self->clock, 0, &ticks, NULL) < 0
        || epoll_ctl(self->poller, EPOLL_CTL_ADD, self->clock, &event) < 0)
        die("timerfd");
}

static void read_clock(struct client *self)
{
    uint64_t ticks;

    if (read(self->clock, &ticks, sizeof ticks) == sizeof ticks)
        self->allowed += (long)ticks;
}

/* Whether there is something left to do, and time for it. */
static int goes_on(const struct client *self, double elapsed)
{
    return !stopping && elapsed < self->seconds
        && (self->wanted < 0 || self->done + self->errors < self->wanted);
}

static double run_exchanges(struct client *self)
{
    struct epoll_event events[EVENTS];
    double begun, now;

    self->poller = epoll_create1(EPOLL_CLOEXEC);
    for (int i = 0; i < self->open_max; i++)
        self->idle[self->idle_count++] = i;
    self->allowed = self->rate > 0 ? 1 : LONG_MAX;
    if (self->rate > 0)
        start_clock(self);
    begun = now = monotonic();
    while (goes_on(self, now - begun)) {
        start_what_may(self);
        int count = epoll_wait(self->poller, events, EVENTS, DRAIN_MS);

        for (int i = 0; i < count; i++) {
            int at = (int)events[i].data.u32;

            if (at == CLOCK) {
                read_clock(self);
                continue;
            }
            int over = advance(&self->slots[at], events[i].events);
            if (!over)
                continue;
            close(self->slots[at].fd);
            if (over > 0)
                self->done++;
            else
                self->errors++;
            self->idle[self->idle_count++] = at;
            start_what_may(self); /* at once: the next exchange must not wait for the batch */
        }
        now = monotonic();
    }
    return now - begun;
}

/* One exchange, waited for at each step. Returns 0 when one of them failed or took too long. */
static int time_exchange(const struct client *self, float *connected, float *answered)
{
    struct timeval limit = {.tv_sec = (time_t)self->seconds + 1};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), good = 0;
    char byte = 'r';
    double begun;

    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) < 0
        || setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) < 0)
        die("socket");
    begun = monotonic();
    if (connect(fd, (const struct sockaddr *)&self->target, sizeof self->target) == 0) {
        *connected = (float)((monotonic() - begun) * 1e6);
        if (send(fd, &byte, 1, MSG_NOSIGNAL) == 1 && recv(fd, &byte, 1, 0) == 1) {
            *answered = (float)((monotonic() - begun) * 1e6);
            good = recv(fd, &byte, 1, 0) == 0;
        }
    }
    close(fd);
    return good;
}

static void print_times(const char *name, const float *times, long count)
{
    printf(",\"%s\":[", name);
    for (long i = 0; i < count; i++)
        printf(i ? ",%.2f" : "%.2f", (double)times[i]);
    printf("]");
}

static void time_exchanges(struct client *self)
{
    static float connected[TIMES_MAX], answered[TIMES_MAX];
    double begun = monotonic(), now = begun;

    while (goes_on(self, now - begun) && self->done < TIMES_MAX) {
        if (time_exchange(self, &connected[self->done], &answered[self->done]))
            self->done++;
        else
            self->errors++;
        now = monotonic();
    }
    printf("{\"exchanges\":%ld,\"errors\":%ld,\"seconds\":%.6f", self->done, self->errors,
           now - begun);
    print_times("connect_us", connected, self->done);
    print_times("response_us", answered, self->done);
    printf("}\n");
}

static int usage(void)
{
    fprintf(stderr, "usage: crr server PORT\n"
                    "       crr http PORT\n"
                    "       crr client ADDR PORT [-c OPEN] [-t SECONDS] [-n COUNT] [-r RATE]\n"
                    "       crr client ADDR PORT -l [-t SECONDS] [-n COUNT]\n");
    return 2;
}

static int run_client(int argc, char **argv)
{
    static struct client self = {.open_max = 16, .wanted = -1, .seconds = 3};
    int option, timed = 0;

    while ((option = getopt(argc, argv, "c:t:n:r:l")) != -1) {
        if (option == 'c')
            self.open_max = atoi(optarg);
        else if (option == 't')
            self.seconds = atof(optarg);
        else if (option == 'n')
            self.wanted = atol(optarg);
        else if (option == 'r')
            self.rate = atof(optarg);
        else if (option == 'l')
            timed = 1;
        else
            return usage();
    }
    self.target.sin_family = AF_INET;
    if (argc - optind != 3 || self.open_max < 1 || self.open_max > OPEN_MAX_CLIENT
        || self.rate < 0 || self.rate > 1e9
        || inet_pton(AF_INET, argv[optind + 1], &self.target.sin_addr) != 1)
        return usage();
    self.target.sin_port = htons((unsigned short)atoi(argv[optind + 2]));
    signal(SIGTERM, on_signal);
    if (timed) {
        time_exchanges(&self);
    } else {
        double seconds = run_exchanges(&self);

        printf("{\"exchanges\":%ld,\"errors\":%ld,\"unfinished\":%ld,\"seconds\":%.6f,"
               "\"rate\":%.1f}\n",
               self.done, self.errors, self.started - self.done - self.errors, seconds,
               (double)self.done / seconds);
    }
    return self.wanted >= 0 ? self.done != self.wanted : self.done == 0;
}

int main(int argc, char **argv)
{
    prctl(PR_SET_PDEATHSIG, SIGTERM); /* a killed harness must not leave a server behind */
    if (argc == 3 && !strcmp(argv[1], "server"))
        serve((unsigned short)atoi(argv[2]), answer_byte); /* until SIGTERM */
    if (argc == 3 && !strcmp(argv[1], "http"))
        serve((unsigned short)atoi(argv[2]), answer_http);
    if (argc > 3 && !strcmp(argv[1], "client"))
        return run_client(argc, argv);
    return usage();
}
