/* A web service that changes its version without refusing or cutting anybody: service ADDRESS
 *
 * Each request is answered on a thread of its own, with the version and how many were answered before, since the very
 * first version began. `manager-fs job run service tell --arg of=requests --host HOST` says how many. */
#include <stdatomic.h>

#include "web.h"

static agent_core *agent;
static atomic_ullong answered;

static void answer(int stream) {
    dprintf(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nversion %s answered %llu before\n",
            agent_core_version(agent), atomic_fetch_add(&answered, 1));
}

static int32_t save_state(void *user, uint32_t schema, agent_core_answer *state) {
    unsigned long long count = atomic_load(&answered);
    (void)user, (void)schema;
    return agent_core_answer_write(state, (const uint8_t *)&count, sizeof count);
}

static int32_t restore_state(void *user, uint32_t schema, const uint8_t *state, size_t length, agent_core_answer *why) {
    unsigned long long count;
    (void)user, (void)schema;
    if (length != sizeof count) {
        const char *text = "the count has another size";
        agent_core_answer_write(why, (const uint8_t *)text, strlen(text));
        return 1;
    }
    memcpy(&count, state, sizeof count);
    atomic_store(&answered, count);
    return 0;
}

static int32_t tell(void *user, agent_core_context *context, agent_core_answer *why) {
    const char *of = agent_core_argument(context, "of");
    char text[32];
    (void)user;
    if (!of || strcmp(of, "requests") != 0) {
        const char *reason = "want --arg of=requests";
        agent_core_answer_write(why, (const uint8_t *)reason, strlen(reason));
        return AGENT_CORE_FAILED;
    }
    snprintf(text, sizeof text, "%llu", atomic_load(&answered));
    return agent_core_result(context, "requests", text);
}

int main(int argc, char **argv) {
    static struct web web = {.answer = answer};
    agent_core_error error;
    if (argc != 2) {
        fprintf(stderr, "usage: service ADDRESS\n");
        return 2;
    }
    agent = agent_core_open(&error); /* first: it takes over what the stub, or the version before, left open */
    if (!agent)
        web_fail(&error);
    web_listen(&web, agent, argv[1]);
    const char *arguments[] = {"of", NULL};
    if (agent_core_on(agent, "tell", arguments, tell, NULL, &error))
        web_fail(&error);
    agent_core_operations operations = {
        .size = sizeof operations, .save_state = save_state, .restore_state = restore_state};
    if (agent_core_start(agent, &operations, &error))
        web_fail(&error);
    web_start(&web);
    if (agent_core_wait(agent, NULL, &error)) /* until SIGTERM */
        web_fail(&error);
    return 0;
}
