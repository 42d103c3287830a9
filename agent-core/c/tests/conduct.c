/* As agent-core/examples/conduct.rs: conduct ADDRESS NOTES VERSION [--FLAG [VALUE]]... */
#include <fcntl.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "../example/web.h"

static const char *notes, *version, *fails = "", *blocks = "", *forks = "";
static bool sick, without_extra, maps;
/* Bytes that the state has behind the number, in a memory file. */
static size_t large;
static atomic_ullong answered;
static agent_core *agent;

static void note_to(int file, const char *word) {
    dprintf(file, "%s %s\n", version, word);
    close(file);
}

static void note(const char *word) {
    note_to(open(notes, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600), word);
}

static int32_t called(const char *callback, agent_core_answer *why) {
    note(callback);
    // What a child of a callback does: it ends as a program does, or goes on where its parent does.
    if (strcmp(forks, callback) == 0 && fork() == 0 && strcmp(callback, "save_state") == 0)
        exit(0);
    while (strcmp(blocks, callback) == 0)
        pause();
    if (strcmp(fails, callback) != 0)
        return 0;
    agent_core_answer_write(why, (const uint8_t *)"told to fail", 12);
    return 1;
}

static int32_t quiesce(void *user, uint64_t within_ms, agent_core_answer *why) {
    (void)user, (void)within_ms;
    return called("quiesce", why);
}

static int32_t resume(void *user, agent_core_answer *why) {
    (void)user;
    return called("resume", why);
}

static int32_t save_state(void *user, uint32_t schema, agent_core_answer *state) {
    uint64_t count = atomic_load(&answered);
    (void)user, (void)schema;
    if (called("save_state", state))
        return 1;
    return agent_core_answer_write(state, (const uint8_t *)&count, sizeof count);
}

static int32_t restore_state(void *user, uint32_t schema, const uint8_t *state, size_t length, agent_core_answer *why) {
    uint64_t count;
    (void)user, (void)schema;
    if (called("restore_state", why) || length < sizeof count)
        return 1;
    memcpy(&count, state, sizeof count);
    atomic_store(&answered, count);
    return 0;
}

static int32_t save_state_to(void *user, uint32_t schema, int32_t file, agent_core_answer *why) {
    uint64_t count = atomic_load(&answered);
    FILE *state = fdopen(file, "w");
    (void)user, (void)schema;
    if (!state || called("save_state_to", why))
        return 1;
    if (maps && (ftruncate(file, 4096) || mmap(NULL, 4096, PROT_WRITE, MAP_SHARED, file, 0) == MAP_FAILED))
        return 1;
    fwrite(&count, sizeof count, 1, state);
    for (size_t at = 0; at < large; at++)
        putc((int)(at % 251), state);
    return fclose(state);
}

static int32_t restore_state_from(void *user, uint32_t schema, int32_t file, agent_core_answer *why) {
    struct stat found;
    uint64_t count;
    bool same = true;
    (void)user, (void)schema;
    if (called("restore_state_from", why) || fstat(file, &found))
        return 1;
    size_t length = (size_t)found.st_size;
    const uint8_t *state = mmap(NULL, length, PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (state == MAP_FAILED)
        return 1;
    memcpy(&count, state, sizeof count);
    atomic_store(&answered, count);
    for (size_t at = sizeof count; at < length; at++)
        same &= state[at] == (at - sizeof count) % 251;
    munmap((void *)state, length);
    return !same;
}

static int32_t healthy(void *user, agent_core_answer *why) {
    (void)user;
    agent_core_answer_write(why, (const uint8_t *)"told to be sick", 15);
    return sick;
}

static void confirmed(void *user) {
    (void)user;
    note("confirmed");
}

static int32_t count(void *user, agent_core_context *context, agent_core_answer *why) {
    const char *units = agent_core_argument(context, "units"), *pause_ms = agent_core_argument(context, "pause_ms");
    uint32_t all = units ? (uint32_t)atoi(units) : 0;
    (void)user, (void)why;
    for (uint32_t done = 0; done < all; done++) {
        if (agent_core_demand(context) >= AGENT_CORE_CHECKPOINT)
            return AGENT_CORE_STOPPED;
        usleep(1000 * (pause_ms ? (useconds_t)atoi(pause_ms) : 0));
        agent_core_units(context, done + 1, all, "counting");
    }
    return agent_core_result(context, "units", units);
}

/* Takes the descriptor twice, or makes it: the notes themselves. */
static void extra(void) {
    for (int time = 0; time < 2; time++) {
        agent_core_error error;
        int kept = agent_core_take(agent, "extra");
        if (kept >= 0) {
            note_to(kept, time ? "took extra twice" : "took extra once");
        } else {
            int made = open(notes, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
            if (agent_core_keep(agent, "extra", made, &error))
                web_fail(&error);
            close(made);
        }
    }
}

static void answer(int stream) {
    dprintf(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n%s answered %llu\n", version,
            atomic_fetch_add(&answered, 1));
}

/* A child that is nobody's and never executes anything: it keeps every descriptor that is open. */
static void leave_child(void) {
    if (fork() == 0) {
        if (fork() == 0) {
            char line[32];
            snprintf(line, sizeof line, "child %d", (int)getpid());
            note(line);
            for (;;)
                pause();
        }
        _exit(0);
    }
    wait(NULL);
}

static void read_flags(int argc, char **argv) {
    for (int at = 4; at < argc; at++) {
        if (strcmp(argv[at], "--sick") == 0)
            sick = true;
        else if (strcmp(argv[at], "--without-extra") == 0)
            without_extra = true;
        else if (strcmp(argv[at], "--maps") == 0)
            maps = true;
        else if (strcmp(argv[at], "--forks") == 0)
            forks = argv[++at];
        else if (strcmp(argv[at], "--large") == 0)
            large = (size_t)atoi(argv[++at]) << 10;
        else if (strcmp(argv[at], "--fails") == 0)
            fails = argv[++at];
        else if (strcmp(argv[at], "--blocks") == 0)
            blocks = argv[++at];
    }
}

int main(int argc, char **argv) {
    static struct web web = {.answer = answer};
    agent_core_error error;
    if (argc < 4)
        return 2;
    notes = argv[2], version = argv[3];
    read_flags(argc, argv);
    agent = agent_core_open(&error);
    if (!agent)
        web_fail(&error);
    if (!without_extra)
        extra();
    web_listen(&web, agent, argv[1]);
    const char *arguments[] = {"units", "pause_ms", NULL};
    if (agent_core_on(agent, "count", arguments, count, NULL, &error))
        web_fail(&error);
    agent_core_operations operations = {
        .size = sizeof operations,
        .quiesce = quiesce,
        .resume = resume,
        .save_state = save_state,
        .restore_state = restore_state,
        .healthy = healthy,
        .confirmed = confirmed,
        .save_state_to = large ? save_state_to : NULL,
        .restore_state_from = large ? restore_state_from : NULL,
    };
    if (agent_core_start(agent, &operations, &error))
        web_fail(&error);
    web_start(&web);
    if (strcmp(forks, "start") == 0)
        leave_child();
    if (agent_core_wait(agent, NULL, &error))
        web_fail(&error);
    note("ended");
    return 0;
}
