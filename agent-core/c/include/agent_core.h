/* A program that changes its own version: the C interface of agent-core.
 *
 * A program that is started by `manager-fs launch PRODUCT` opens an agent, takes what it listens on by a name, says what
 * it does of its own, starts, and serves until agent_core_wait comes back. When it is told to become another version,
 * the library waits for what is under way, and executes the new program in this process; what is kept under names goes
 * along. docs/embedding.md begins with a program, docs/swap.md has every way of failing.
 *
 *   agent_core *agent = agent_core_open(&error);                                first, before anything is opened
 *   int listener = agent_core_listen_tcp(agent, "http", "0.0.0.0:80", &error);
 *   agent_core_intake *intake = agent_core_intake_new(agent, listener, &error);
 *   agent_core_start(agent, &operations, &error);
 *   ... agent_core_accept, on threads of the program's own ...
 *   agent_core_wait(agent, NULL, &error);
 *
 * Every function may be called from any thread, unless it says otherwise. Texts are UTF-8 and end in NUL; they are the
 * caller's, and are copied. A handle is freed once, by the function that is named with it, when nobody uses it any more.
 * An `error` may be NULL; otherwise it is written by every call, with 0 when nothing is wrong. Nothing unwinds out of
 * the library, and nothing may unwind into it: a callback of a C++ program catches its exceptions.
 */
#ifndef AGENT_CORE_H
#define AGENT_CORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What a call that failed says to the program; the text is for people. */
enum agent_core_code {
    AGENT_CORE_OK = 0,
    AGENT_CORE_ARGUMENT = 1,     /* an argument of the call means nothing */
    AGENT_CORE_NOT_LAUNCHED = 2, /* start this program with `manager-fs launch PRODUCT` */
    AGENT_CORE_WRONG_TIME = 3,   /* too late for this, or too early */
    AGENT_CORE_STATE = 4,        /* restore_state refused what the version before saved */
    AGENT_CORE_HOST = 5,         /* a file, a descriptor, a thread: what the host has or lacks */
    AGENT_CORE_PANIC = 6         /* a fault of the library itself */
};

typedef struct agent_core_error {
    int32_t code; /* enum agent_core_code */
    char text[1020];
} agent_core_error;

typedef struct agent_core agent_core;                           /* agent_core_close */
typedef struct agent_core_intake agent_core_intake;             /* lives as long as the program */
typedef struct agent_core_gate agent_core_gate;                 /* lives as long as the program */
typedef struct agent_core_pass agent_core_pass;                 /* agent_core_leave */
typedef struct agent_core_child_permit agent_core_child_permit; /* agent_core_after_child */
typedef struct agent_core_answer agent_core_answer;             /* lives as long as the callback that it was given to */
typedef struct agent_core_context agent_core_context;           /* the same */

/* ---- What crosses a change-over ---- */

/* Takes over what the stub, or the version before, left open for this program. Call it first in main, and once: what is
 * named in the environment is taken over by number. NULL with the error if the program was not launched. */
agent_core *agent_core_open(agent_core_error *error);

/* Frees the handle: after agent_core_wait, or where the program gives up. */
void agent_core_close(agent_core *agent);

/* A duplicate of the descriptor that is kept under this name, which is the caller's and closes on exec; -1 where nothing
 * is. It may be taken any number of times. */
int32_t agent_core_take(const agent_core *agent, const char *name);

/* Keeps a duplicate of this descriptor under a name of 1 to 64 letters, digits, '.', '-', '_', in the place of what had
 * it before. It goes from version to version in both directions, and the stub holds one for a version that crashes. */
int32_t agent_core_keep(const agent_core *agent, const char *name, int32_t descriptor, agent_core_error *error);

/* Closes what is kept under a name, here and at the stub; what was taken stays open. */
void agent_core_forget(const agent_core *agent, const char *name);

/* The listener of this name, bound to an address such as "127.0.0.1:8080" if nobody had it yet, and kept. The
 * descriptor is the caller's; -1 with the error. Sockets of other kinds: take, or make and keep. */
int32_t agent_core_listen_tcp(const agent_core *agent, const char *name, const char *address, agent_core_error *error);

/* ---- What is under way ---- */

/* Takes connections from a listening socket, which it owns from now on also where it fails. Before agent_core_start. */
agent_core_intake *agent_core_intake_new(const agent_core *agent, int32_t listener, agent_core_error *error);

/* Waits for the next connection; while a change-over is under way, until it has failed. The descriptor is the caller's
 * and blocks; leave the pass when the connection was answered and closed: the change-over waits for it. -1 with the
 * error: trying again after a moment is right. Several threads may accept. */
int32_t agent_core_accept(const agent_core_intake *intake, agent_core_pass **pass, agent_core_error *error);

/* For programs that take their work in another way. Before agent_core_start. */
agent_core_gate *agent_core_gate_new(const agent_core *agent, agent_core_error *error);

/* Waits while a change-over is under way. From its return until agent_core_leave something is under way. */
agent_core_pass *agent_core_enter(const agent_core_gate *gate);

/* The same without waiting: NULL while a change-over is under way. */
agent_core_pass *agent_core_try_enter(const agent_core_gate *gate);

/* Whether a change-over waits for this pass: finish what was begun, and begin nothing more. */
bool agent_core_is_wanted_back(const agent_core_pass *pass);

/* What was under way is done. */
void agent_core_leave(agent_core_pass *pass);

/* Hold this while starting a child process (fork, posix_spawn), so that none is started that a change-over does not know
 * of. On one thread: it is given back where it was taken. */
agent_core_child_permit *agent_core_before_child(void);
void agent_core_after_child(agent_core_child_permit *permit);

/* ---- What the program brings ---- */

/* Adds bytes to what a callback says: the state in save_state, and otherwise the reason why it does not return 0. */
int32_t agent_core_answer_write(agent_core_answer *to, const uint8_t *from, size_t length);

/* What the library calls, from threads of its own, several at a time. All functions may be NULL. Those with an answer
 * return 0 when all is well. Each has an end: docs/swap.md says what becomes of one that does not come back. */
typedef struct agent_core_operations {
    size_t size; /* sizeof(agent_core_operations): later versions have more at the end */
    void *user;  /* the first argument of each */

    /* The schemas in which save_state can write; 0 and 0: the newest one of this version's record. A version that
     * reads none of them is refused before anything is drained. */
    uint32_t writes_min, writes_max;

    /* A change-over is next: begin nothing more, finish what is under way within so many milliseconds, come back. What
     * has a gate or comes through an intake is waited for by the library. Called at every drain. */
    int32_t (*quiesce)(void *user, uint64_t within_ms, agent_core_answer *why);

    /* The change-over did not come about: go on. Called after every quiesce that no execve followed. */
    int32_t (*resume)(void *user, agent_core_answer *why);

    /* Writes the state for the next version, in this schema. Not 0: the change-over does not come about. It has 5 s;
     * what is large is better written by save_state_to, below. */
    int32_t (*save_state)(void *user, uint32_t schema, agent_core_answer *state);

    /* Takes over what the version before saved, or this one itself where the next one failed, within agent_core_start.
     * Not 0: this version fails, the one before returns. Not called where there is nothing to take over. */
    int32_t (*restore_state)(void *user, uint32_t schema, const uint8_t *state, size_t length, agent_core_answer *why);

    /* Whether the program is fit to work: asked during its probation until it says yes once. */
    int32_t (*healthy)(void *user, agent_core_answer *why);

    /* This version has proved itself and is believed. */
    void (*confirmed)(void *user);

    /* As save_state, and called in its place where it is there: for a state of any size, which is written into this
     * memory file (memfd_create(2)) and crosses execve where it lies. The file is empty; the descriptor is the
     * callback's own, to be closed by it. The library seals the file, so nothing may have it mapped for writing when
     * this comes back. Not 0: the change-over does not come about, for the reason that was written. It has 5 s, too. */
    int32_t (*save_state_to)(void *user, uint32_t schema, int32_t file, agent_core_answer *why);

    /* As restore_state, and called in its place where it is there, however the state was saved: out of a sealed memory
     * file, which stands at its beginning and may be mapped for reading. The descriptor is the callback's own, to be
     * closed by it, or kept. */
    int32_t (*restore_state_from)(void *user, uint32_t schema, int32_t file, agent_core_answer *why);
} agent_core_operations;

/* Serves the operations socket, and confirms this version as soon as it is healthy. `operations` may be NULL, and is
 * copied; its functions must stay. From now on SIGTERM no longer ends the process: agent_core_wait tells. Where it fails
 * the program prints the text and exits with 1: the version before returns. */
int32_t agent_core_start(const agent_core *agent, const agent_core_operations *operations, agent_core_error *error);

/* The version that runs, after agent_core_start; it lives as long as the handle. */
const char *agent_core_version(const agent_core *agent);

/* What the program adds to the reason that `status` shows, from now on. After agent_core_start. */
int32_t agent_core_remark(const agent_core *agent, const char *line);

/* Why agent_core_wait came back. */
enum agent_core_why {
    AGENT_CORE_TERMINATED = 1, /* SIGTERM came */
    AGENT_CORE_STUB_GONE = 2   /* the stub has ended; another one will start this product again */
};

/* Waits until the program is to end, then quiesces it and lets operations stop. The program exits with 0 after it. */
int32_t agent_core_wait(const agent_core *agent, int32_t *why, agent_core_error *error);

/* ---- Operations of its own kinds: `manager-fs job run PRODUCT KIND --arg NAME=VALUE` ---- */

/* How an operation came back. */
enum agent_core_ended {
    AGENT_CORE_DONE = 0,
    AGENT_CORE_FAILED = 1,  /* and the reason was written to `why` */
    AGENT_CORE_STOPPED = -1 /* as agent_core_demand asked: for a cancel, or to go on from the last checkpoint */
};

/* What is asked of a running operation. */
enum agent_core_demanded {
    AGENT_CORE_NOTHING = 0,      /* work */
    AGENT_CORE_FINISH = 1,       /* a change-over waits: finish soon if possible */
    AGENT_CORE_CHECKPOINT = 2,   /* stop at the next unit with AGENT_CORE_STOPPED */
    AGENT_CORE_CANCEL = 3        /* the same, and nobody wants it any more */
};

/* Performs one operation to its end, on a thread of its own. `context` is used on this thread. */
typedef int32_t (*agent_core_run)(void *user, agent_core_context *context, agent_core_answer *why);

/* Registers a kind, before agent_core_start. `arguments` are the names that it takes, and NULL at the end; an operation
 * with another argument fails, and never gets here. */
int32_t agent_core_on(const agent_core *agent, const char *kind, const char *const *arguments, agent_core_run run,
                      void *user, agent_core_error *error);

/* The value of an argument, which lives as long as the operation; NULL where it was not given. */
const char *agent_core_argument(const agent_core_context *context, const char *name);

/* enum agent_core_demanded. Cheap; ask at every unit. */
int32_t agent_core_demand(const agent_core_context *context);

/* The manager's number of the job. */
uint64_t agent_core_job(const agent_core_context *context);

/* Makes this durable as the place from which the operation goes on: after a change-over, a crash, a power cut. */
int32_t agent_core_checkpoint(const agent_core_context *context, const uint8_t *state, size_t length,
                              agent_core_error *error);

/* The last checkpoint of an earlier call, perhaps of another version; NULL where there is none. It lives as long as the
 * operation. */
const uint8_t *agent_core_resume(const agent_core_context *context, size_t *length);

/* How far it is, for whoever watches: so many units of so many, and what is being done (or NULL). */
void agent_core_units(const agent_core_context *context, uint32_t done, uint32_t all, const char *now);

/* One line of what it did, under a name of letters, digits, '.', '_', '-'. */
int32_t agent_core_result(agent_core_context *context, const char *name, const char *value);

/* An error that was passed over: the job is then done with problems. */
int32_t agent_core_problem(agent_core_context *context, const char *problem);

#ifdef __cplusplus
}
#endif

#endif
