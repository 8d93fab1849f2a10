/* hold: many TCP connections open at once, and how many of them are still good at the end.
 *
 * usage: hold server [-n COUNT] PORT...               (0 = any free port)
 *        hold client [-n COUNT] [-r RATE] [-t SECONDS] [-w SECONDS] ADDR PORT...
 *   -n   connections to hold (1000); of a server: how many it must be able to hold
 *   -r   at most so many new ones a second (20000)
 *   -t   time to open them all (30)
 *   -w   how long to hold them (1)
 * The server prints "ready PORT..." and echoes until SIGTERM. The client opens its connections,
 * spread over the ports in turns; one counts as open when a first byte came back through it. It
 * prints "held OPENED" when all are open or the time is over, waits, sends one more byte on each
 * and prints one JSON line. A connection is broken when it was open and the second byte did not
 * come back. Exit status 1: none was alive at the end, or a limit of the system; 2: usage.
 *
 * Several ports, because an address has 64 k ports for one port that it speaks to (28 k by
 * default). Several processes, where one may not have so many files open. At most IN_FLIGHT
 * connections are being opened at a time, and the same again at the end, so that no queue on the
 * way is ever asked to hold more. All ends in RSTs (SO_LINGER 0), which leaves nothing in TIME_WAIT
 * for the next run to meet.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PORTS_MAX = 64, COUNT_MAX = 1000000, EVENTS = 256, BACKLOG = 4096, IN_FLIGHT = 256 };
enum { SPARE_FDS = 128, PROCESSES_MAX = 64, WAIT_MS = 1, PATIENCE_MS = 100, ANSWER_S = 10 };

enum step { CONNECTING, GREETED, HELD, ASKED, ALIVE, GONE };

struct conn {
    int fd;
    enum step step;
};

struct result {
    long opened, failed, alive;
    double opening, asking; /* seconds */
    int why;                /* errno of the first that failed */
};

/* One process of the client, with its share of the connections. */
struct client {
    struct sockaddr_in target;
    unsigned short ports[PORTS_MAX];
    int port_count, poller;
    long wanted;
    int in_flight_max;
    double rate, open_seconds, hold_seconds;
    struct conn *conns;
    long started, asked, in_flight;
    struct result *result; /* shared with the parent */
};

static void die(const char *what)
{
    fprintf(stderr, "hold: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double monotonic(void)
{
    struct timespec at;

    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + (double)at.tv_nsec / 1e9;
}

/* In how many processes `count` connections have room, each of them allowed the files it needs. */
static int processes_for(long count)
{
    struct rlimit limit, raised;
    long room;

    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        die("getrlimit");
    raised.rlim_cur = raised.rlim_max = (rlim_t)(count + SPARE_FDS);
    if (raised.rlim_max < limit.rlim_max)
        raised.rlim_max = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &raised) == 0)
        return 1;
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) < 0)
        die("setrlimit");
    room = (long)limit.rlim_max - SPARE_FDS;
    if (room > 0 && count <= room * PROCESSES_MAX)
        return (int)((count + room - 1) / room);
    fprintf(stderr,
            "hold: %ld connections do not fit %d processes that may have %lu files open each:"
            " raise the hard limit (ulimit -Hn, systemd: LimitNOFILE=, docker: --ulimit nofile=)\n",
            count, PROCESSES_MAX, (unsigned long)limit.rlim_max);
    exit(1);
}

static void close_by_reset(int fd)
{
    struct linger at_once = {.l_onoff = 1, .l_linger = 0};

    setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
}

static void watch(int poller, int fd, unsigned events, unsigned tag)
{
    struct epoll_event event = {.events = events, .data.u32 = tag};

    if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event) < 0)
        die("epoll_ctl");
}

/* Returns the port, chosen by the kernel when it was 0. Accepted sockets inherit the linger. */
static unsigned short listen_on(unsigned short port, int *listener)
{
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(port)};
    socklen_t size = sizeof here;
    int on = 1;

    *listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(*listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    close_by_reset(*listener);
    if (bind(*listener, (struct sockaddr *)&here, size) < 0 || listen(*listener, BACKLOG) < 0)
        die("listen");
    getsockname(*listener, (struct sockaddr *)&here, &size);
    return ntohs(here.sin_port);
}

/* Returns how many it took, at most `room`. */
static long accept_some(int listener, int poller, long room)
{
    for (long taken = 0; taken < room; taken++) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

        if (fd < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM))
            die("accept"); /* the figure would be this server's limit */
        if (fd < 0)
            return taken;
        watch(poller, fd, EPOLLIN, (unsigned)fd);
    }
    return room;
}

/* Returns 1 when the connection is over. */
static int echo(int fd)
{
    char bytes[64];
    ssize_t length = recv(fd, bytes, sizeof bytes, 0);

    if (length > 0)
        (void)send(fd, bytes, (size_t)length, MSG_NOSIGNAL);
    if (length > 0 || (length < 0 && errno == EAGAIN))
        return 0;
    close(fd);
    return 1;
}

static int is_listener(int fd, const int *listeners, int count)
{
    for (int i = 0; i < count; i++)
        if (fd == listeners[i])
            return 1;
    return 0;
}

/* One process of the server. It looks away from the listeners, which all processes share, for as
   long as it has no room for more. */
static void serve(const int *listeners, int listener_count, long room)
{
    struct epoll_event events[EVENTS];
    int poller = epoll_create1(EPOLL_CLOEXEC), listening = 0;

    for (;;) {
        for (int i = 0; i < listener_count && listening != (room > 0); i++) {
            if (room > 0)
                watch(poller, listeners[i], EPOLLIN | EPOLLEXCLUSIVE, (unsigned)listeners[i]);
            else
                epoll_ctl(poller, EPOLL_CTL_DEL, listeners[i], NULL);
        }
        listening = room > 0;
        int count = epoll_wait(poller, events, EVENTS, PATIENCE_MS);

        /* The one process that was woken for a connection may have been full by then. */
        for (int i = 0; i < listener_count && count == 0; i++)
            room -= accept_some(listeners[i], poller, room);
        for (int i = 0; i < count; i++) {
            int fd = (int)events[i].data.u32;

            if (is_listener(fd, listeners, listener_count))
                room -= accept_some(fd, poller, room);
            else
                room += echo(fd);
        }
    }
}

/* The processes of the server, until SIGTERM. When it has ended, so have all its connections. */
static int run_server(const unsigned short *ports, int port_count, long wanted)
{
    int listeners[PORTS_MAX], processes = processes_for(wanted), signum;
    pid_t children[PROCESSES_MAX];
    sigset_t signals, before;

    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGCHLD); /* one of them met a limit, and said so */
    sigprocmask(SIG_BLOCK, &signals, &before);
    printf("ready");
    for (int i = 0; i < port_count; i++)
        printf(" %u", listen_on(ports[i], &listeners[i]));
    printf("\n");
    fflush(stdout);
    for (int i = 0; i < processes; i++) {
        children[i] = fork();
        if (children[i] < 0)
            die("fork");
        if (children[i] == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            sigprocmask(SIG_SETMASK, &before, NULL);
            serve(listeners, port_count, wanted / processes + SPARE_FDS / 2);
        }
    }
    sigwait(&signals, &signum);
    for (int i = 0; i < processes; i++)
        kill(children[i], SIGKILL);
    while (wait(NULL) > 0)
        continue;
    return signum == SIGCHLD;
}

static void give_up(struct client *self, struct conn *conn, int why)
{
    if (conn->step != ASKED) {
        self->result->failed++;
        if (!self->result->why)
            self->result->why = why;
    }
    self->in_flight--;
    conn->step = GONE;
    close(conn->fd);
}

static void open_next(struct client *self)
{
    struct conn *conn = &self->conns[self->started];

    self->target.sin_port = htons(self->ports[self->started % self->port_count]);
    conn->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (conn->fd < 0)
        die("socket");
    close_by_reset(conn->fd);
    conn->step = CONNECTING;
    self->in_flight++;
    if (connect(conn->fd, (struct sockaddr *)&self->target, sizeof self->target) < 0
        && errno != EINPROGRESS)
        give_up(self, conn, errno);
    else
        watch(self->poller, conn->fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET,
              (unsigned)self->started);
    self->started++;
}

static int send_byte(struct client *self, struct conn *conn, enum step next)
{
    char byte = 'h';

    conn->step = next;
    if (send(conn->fd, &byte, 1, MSG_NOSIGNAL) == 1)
        return 1;
    give_up(self, conn, errno);
    return 0;
}

static void advance(struct client *self, struct conn *conn, unsigned events)
{
    char byte;
    ssize_t length;

    if (conn->step != CONNECTING && conn->step != GREETED && conn->step != ASKED)
        return; /* one that broke while it was held shows when it is asked */
    if (conn->step == CONNECTING && (events & (EPOLLERR | EPOLLHUP))) {
        int why = 0;
        socklen_t size = sizeof why;

        getsockopt(conn->fd, SOL_SOCKET, SO_ERROR, &why, &size);
        give_up(self, conn, why ? why : ECONNRESET);
        return;
    }
    if (conn->step == CONNECTING && (!(events & EPOLLOUT) || !send_byte(self, conn, GREETED)))
        return;
    length = recv(conn->fd, &byte, 1, 0);
    if (length < 0 && errno == EAGAIN)
        return;
    if (length != 1) {
        give_up(self, conn, length < 0 ? errno : ECONNRESET);
    } else if (conn->step == GREETED) {
        conn->step = HELD;
        self->result->opened++;
        self->in_flight--;
    } else {
        conn->step = ALIVE;
        self->result->alive++;
        self->in_flight--;
    }
}

static void poll_once(struct client *self)
{
    struct epoll_event events[EVENTS];
    int count = epoll_wait(self->poller, events, EVENTS, WAIT_MS);

    for (int i = 0; i < count; i++)
        advance(self, &self->conns[events[i].data.u32], events[i].events);
}

/* Seconds that it took. Those that are still on their way when the time is over have failed. */
static double open_all(struct client *self)
{
    double begun = monotonic(), now = begun;

    while ((self->started < self->wanted || self->in_flight > 0)
           && now - begun < self->open_seconds) {
        while (self->started < self->wanted && self->in_flight < self->in_flight_max
               && (double)self->started <= (now - begun) * self->rate)
            open_next(self);
        poll_once(self);
        now = monotonic();
    }
    for (long i = 0; i < self->started; i++)
        if (self->conns[i].step == CONNECTING || self->conns[i].step == GREETED)
            give_up(self, &self->conns[i], ETIMEDOUT);
    return now - begun;
}

/* A byte on each. A broken one fails at once or with the answer's RST; silence is waited for. */
static double ask_all(struct client *self)
{
    double begun = monotonic(), now = begun;

    while ((self->asked < self->started || self->in_flight > 0) && now - begun < ANSWER_S) {
        while (self->asked < self->started && self->in_flight < self->in_flight_max) {
            struct conn *conn = &self->conns[self->asked++];

            if (conn->step != HELD)
                continue;
            self->in_flight++;
            (void)send_byte(self, conn, ASKED);
        }
        poll_once(self);
        now = monotonic();
    }
    return now - begun;
}

/* One process of the client: tells `up` when it has opened all, and goes on when `go` is closed. */
static void run_share(struct client *self, int up, int go)
{
    char byte = 'u';

    self->poller = epoll_create1(EPOLL_CLOEXEC);
    self->conns = calloc((size_t)self->wanted, sizeof *self->conns);
    if (!self->conns)
        die("calloc");
    self->result->opening = open_all(self);
    if (write(up, &byte, 1) != 1 || read(go, &byte, 1) != 0)
        die("the parent");
    self->result->asking = ask_all(self);
    exit(0);
}

static struct result sum(const struct result *results, int count)
{
    struct result all = {0};

    for (int i = 0; i < count; i++) {
        all.opened += results[i].opened;
        all.failed += results[i].failed;
        all.alive += results[i].alive;
        all.opening = results[i].opening > all.opening ? results[i].opening : all.opening;
        all.asking = results[i].asking > all.asking ? results[i].asking : all.asking;
        all.why = all.why ? all.why : results[i].why;
    }
    return all;
}

static int run_client(struct client *self)
{
    int processes = processes_for(self->wanted), up[2], go[2], status, bad = 0;
    long wanted = self->wanted, begun = 0;
    char byte;
    struct result all, *results = mmap(NULL, sizeof *results * PROCESSES_MAX,
                                       PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    if (results == MAP_FAILED || pipe(up) < 0 || pipe(go) < 0)
        die("pipe");
    self->rate /= processes;
    self->in_flight_max = IN_FLIGHT / processes;
    for (int i = 0; i < processes; i++) {
        self->wanted = wanted * (i + 1) / processes - begun;
        self->result = &results[i];
        begun += self->wanted;
        pid_t child = fork();
        if (child < 0)
            die("fork");
        if (child == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            close(up[0]);
            close(go[1]);
            run_share(self, up[1], go[0]);
        }
    }
    close(up[1]);
    for (int i = 0; i < processes; i++)
        if (read(up[0], &byte, 1) != 1)
            return 1; /* one of them met a limit, and said so */
    printf("held %ld\n", sum(results, processes).opened);
    fflush(stdout);
    usleep((useconds_t)(self->hold_seconds * 1e6));
    close(go[1]);
    while (wait(&status) > 0)
        bad |= status;
    all = sum(results, processes);
    printf("{\"wanted\":%ld,\"opened\":%ld,\"failed\":%ld,\"alive\":%ld,\"broken\":%ld,"
           "\"open_seconds\":%.6f,\"answer_seconds\":%.6f,\"processes\":%d,\"error\":\"%s\"}\n",
           wanted, all.opened, all.failed, all.alive, all.opened - all.alive, all.opening,
           all.asking, processes, all.why ? strerror(all.why) : "");
    return bad || all.alive == 0;
}

static int usage(void)
{
    fprintf(stderr, "usage: hold server [-n COUNT] PORT...\n"
                    "       hold client [-n COUNT] [-r RATE] [-t SECONDS] [-w SECONDS] ADDR"
                    " PORT...\n");
    return 2;
}

int main(int argc, char **argv)
{
    static struct client self = {
        .wanted = 1000, .rate = 20000, .open_seconds = 30, .hold_seconds = 1};
    int option, server;

    prctl(PR_SET_PDEATHSIG, SIGTERM); /* a killed harness must not leave a server behind */
    if (argc < 2 || (strcmp(argv[1], "server") && strcmp(argv[1], "client")))
        return usage();
    server = !strcmp(argv[1], "server");
    argc--;
    argv++;
    while ((option = getopt(argc, argv, server ? "n:" : "n:r:t:w:")) != -1) {
        if (option == 'n')
            self.wanted = atol(optarg);
        else if (option == 'r')
            self.rate = atof(optarg);
        else if (option == 't')
            self.open_seconds = atof(optarg);
        else if (option == 'w')
            self.hold_seconds = atof(optarg);
        else
            return usage();
    }
    self.target.sin_family = AF_INET;
    if (self.wanted < 1 || self.wanted > COUNT_MAX || self.rate <= 0)
        return usage();
    if (!server
        && (optind >= argc || inet_pton(AF_INET, argv[optind++], &self.target.sin_addr) != 1))
        return usage();
    for (; optind < argc && self.port_count < PORTS_MAX; optind++)
        self.ports[self.port_count++] = (unsigned short)atoi(argv[optind]);
    if (self.port_count == 0 || optind < argc)
        return usage();
    if (!server)
        return run_client(&self);
    return run_server(self.ports, self.port_count, self.wanted);
}
