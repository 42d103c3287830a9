/* As agent-core/examples/conduct.rs: conduct ADDRESS NOTES VERSION [--FLAG [VALUE]]... */
#include <fcntl.h>
#include <stdatomic.h>

#include "../example/web.h"

static const char *notes, *version, *fails = "", *blocks = "";
static bool sick, without_extra;
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
    if (called("restore_state", why) || length != sizeof count)
        return 1;
    memcpy(&count, state, sizeof count);
    atomic_store(&answered, count);
    return 0;
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

static void read_flags(int argc, char **argv) {
    for (int at = 4; at < argc; at++) {
        if (strcmp(argv[at], "--sick") == 0)
            sick = true;
        else if (strcmp(argv[at], "--without-extra") == 0)
            without_extra = true;
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
    };
    if (agent_core_start(agent, &operations, &error))
        web_fail(&error);
    web_start(&web);
    if (agent_core_wait(agent, NULL, &error))
        web_fail(&error);
    note("ended");
    return 0;
}
