/* A stand-in for NVIDIA's driver: it proves the order of calls, not a result. No GPU is behind it.

   Work is done as late as the order allows: a stream's queue runs only when somebody waits for it, so that a wait that
   is missing shows as old bytes. Device memory is host memory that is never handed out twice. What a real driver would
   let pass and would crash on later (freed memory, another thread's capture, a destroyed handle) is counted as a fault
   and kept in words. Kernels do nothing but touch the addresses that a test names. Names and numbers are cuda.h's. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int R;
typedef unsigned U;
typedef void *P;
typedef uint64_t A;
enum { OK = 0, INVALID_VALUE = 1, NO_MEMORY = 2, NO_CONTEXT = 201, BAD_HANDLE = 400, NOT_FOUND = 500, NOT_READY = 600,
       NOT_SUPPORTED = 801, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901, CAPTURE_ISOLATION = 905,
       CAPTURE_WRONG_THREAD = 908 };
enum { COPY, FILL, RECORD, WAIT, LAUNCH, GRAPH, BEGIN, END };
enum { DEVICE = 1, PINNED, POOL };
#define MOST 4096
#define MEMORY ((size_t)1 << 28)

typedef struct Op { int kind; char *to, *from; size_t n; int value; struct Event *event; struct Stream *stream; long at;
                    struct Graph *graph; struct Area *area; A touched[8]; int touches; char *own; } Op;
typedef struct Stream { Op *ops; long count, done; int blocking, mode; P handle; pthread_t by;
                        struct Graph *graph; int broken; P context; } Stream;
typedef struct Event { Stream *stream; long at; double when; int timed, live, captured; } Event;
typedef struct Graph { Op *ops; long count; int live, exec; } Graph;
typedef struct Area { char *at; size_t n; int kind, live; Stream *stream; long from; } Area;
typedef struct Context { int live, primary; long retained; } Context;
typedef struct Module { char *image; size_t n; int live; P context; } Module;
typedef struct Function { Module *module; char name[256]; int shared; } Function;
typedef struct Slot { Stream *stream; } Slot;

static pthread_mutex_t lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;
static Slot slots[MOST];
static Stream *streams[MOST], legacy = {.blocking = 2};
static Area areas[MOST];
static Context primary = {.live = 1, .primary = 1};
static int stream_count, area_count, modules_live, events_live, graphs_live, fault_count, launches, contexts_live;
static size_t reserved; /* of the pool, freed or not */
static A threshold;     /* of the pool: bytes that are kept */
static double now_us;
static char faults[1 << 16], journal[1 << 18];
static A next_touched[8];
static int next_touches;
static __thread P stack[64];
static __thread int depth;
static __thread Stream *own_default;

static void note(char *to, size_t room, const char *format, va_list more) {
  size_t used = strlen(to);
  if (used + 300 > room) return;
  vsnprintf(to + used, 298, format, more);
  strcat(to, "\n");
}
static R fault(R code, const char *format, ...) {
  va_list more;
  va_start(more, format);
  note(faults, sizeof faults, format, more);
  va_end(more);
  fault_count++;
  return code;
}
static void say(const char *format, ...) {
  va_list more;
  va_start(more, format);
  note(journal, sizeof journal, format, more);
  va_end(more);
}
#define CALL(name, ...) R name(__VA_ARGS__)
#define LOCKED pthread_mutex_lock(&lock)
#define DONE(code) do { R code_ = (code); pthread_mutex_unlock(&lock); return code_; } while (0)
#define IN_CONTEXT do { if (!depth) DONE(NO_CONTEXT); } while (0)

/* what a test asks */
const char *standin_faults(void) { return faults; }
const char *standin_journal(void) { return journal; }
void standin_forget(void) { faults[0] = journal[0] = 0; fault_count = 0; }
long standin_live(const char *what) {
  long n = 0;
  for (int i = 0; i < area_count; i++)
    n += areas[i].live && areas[i].kind == (*what == 'd' ? DEVICE : *what == 'p' ? PINNED : *what == 'o' ? POOL : -1);
  if (*what == 's') for (int i = 0; i < MOST; i++) n += slots[i].stream != NULL;
  if (*what == 'e') n = events_live;
  if (*what == 'g') n = graphs_live;
  if (*what == 'm') n = modules_live;
  if (*what == 'c') n = primary.retained + contexts_live;
  if (*what == 'l') n = launches;
  if (*what == 'r') n = (long)reserved;
  if (*what == 't') n = depth;
  return n;
}
void standin_touch(int count, const A *addresses) { /* by the next launch */
  next_touches = count;
  memcpy(next_touched, addresses, count * sizeof *addresses);
}

/* memory */
static Area *area_of(char *at) {
  for (int i = area_count - 1; i >= 0; i--)
    if (at >= areas[i].at && at < areas[i].at + areas[i].n) return areas + i;
  return NULL;
}
static void check(char *at, size_t n, const char *what) {
  Area *a = area_of(at);
  if (!a || a->kind == PINNED) return; /* the host's own */
  if (!a->live) fault(0, "%s touches %zu bytes of freed memory", what, n);
  else if (at + n > a->at + a->n) fault(0, "%s reaches %zu bytes past the end", what, (size_t)(at + n - a->at - a->n));
  else if (a->stream && a->stream->done < a->from) fault(0, "%s touches memory that is not allocated yet", what);
}
static size_t in_use(void) {
  size_t n = 0;
  for (int i = 0; i < area_count; i++) if (areas[i].live && areas[i].kind == DEVICE) n += areas[i].n;
  return n + reserved;
}
static Area *take(size_t n, int kind) {
  if (!n || area_count == MOST || (kind != PINNED && in_use() + n > MEMORY)) return NULL;
  char *at = aligned_alloc(512, (n + 511) / 512 * 512);
  memset(at, 0xAA, n);
  areas[area_count] = (Area){.at = at, .n = n, .kind = kind, .live = 1};
  if (kind == POOL) reserved += n;
  return areas + area_count++;
}

/* streams: run as little as possible */
static void run_to(Stream *s, long at);
static void run(Op *o) {
  now_us += 1;
  switch (o->kind) {
  case COPY:
    check(o->to, o->n, "a copy");
    check(o->from, o->n, "a copy");
    memmove(o->to, o->from, o->n);
    if (o->own) { free(o->own); o->own = NULL; }
    break;
  case FILL: check(o->to, o->n, "a fill"); memset(o->to, o->value, o->n); break;
  case RECORD: if (o->event->live && o->event->at == o->at) o->event->when = now_us; break;
  case WAIT: if (o->stream) run_to(o->stream, o->at); break;
  case LAUNCH: for (int i = 0; i < o->touches; i++) check((char *)o->touched[i], 1, "a kernel"); break;
  case GRAPH:
    if (!o->graph->live) fault(0, "a destroyed graph runs");
    for (long i = 0; i < o->graph->count; i++) { Op copy = o->graph->ops[i]; copy.own = NULL; run(&copy); }
    break;
  case BEGIN: break;
  case END: memset(o->area->at, 0xDD, o->area->n); o->area->live = 0; break;
  }
}
static void run_to(Stream *s, long at) { while (s->done < at && s->done < s->count) { Op *o = s->ops + s->done; s->done++; run(o); } }
static void run_all(void) { run_to(&legacy, legacy.count); for (int i = 0; i < stream_count; i++) run_to(streams[i], streams[i]->count); }
static Stream *new_stream(int blocking) {
  Stream *s = calloc(1, sizeof *s);
  s->blocking = blocking;
  return streams[stream_count++] = s;
}
static Stream *stream_of(P handle) {
  if ((A)handle <= 1) return &legacy;
  if ((A)handle == 2) return own_default ? own_default : (own_default = new_stream(1));
  Slot *slot = handle;
  if (slot < slots || slot >= slots + MOST || !slot->stream) { fault(0, "a stream that is none is used"); return NULL; }
  return slot->stream;
}
static Op *push(Stream *s, Op op) {
  Op **ops = &s->ops; long *count = &s->count;
  if (s->graph) { ops = &s->graph->ops; count = &s->graph->count; }
  *ops = realloc(*ops, (*count + 1) * sizeof op);
  (*ops)[*count] = op;
  return *ops + (*count)++;
}
static Stream *capturing(int mode) {
  for (int i = 0; i < stream_count; i++) {
    Stream *s = streams[i];
    if (s->graph && (mode < 0 || s->mode == mode)) return s;
  }
  return NULL;
}
/* a call that no capture allows: of any thread in mode global (0), of the same one in mode thread-local (1) */
static R unsafe(const char *what) {
  for (int i = 0; i < stream_count; i++) {
    Stream *s = streams[i];
    if (s->graph && (s->mode == 0 || (s->mode == 1 && pthread_equal(s->by, pthread_self())))) {
      s->broken = 1;
      return fault(CAPTURE_UNSUPPORTED, "%s during a capture in mode %s", what, s->mode ? "thread_local" : "global");
    }
  }
  return OK;
}
static R add(P handle, Op op) {
  Stream *s = stream_of(handle);
  if (!s) return BAD_HANDLE;
  if (s->graph && s->broken) return CAPTURE_INVALIDATED;
  if (s == &legacy && capturing(-1) && unsafe("work on the default stream")) return CAPTURE_UNSUPPORTED;
  if (!s->graph) {
    if (s == &legacy) { for (int i = 0; i < stream_count; i++) if (streams[i]->blocking) push(s, (Op){.kind = WAIT, .stream = streams[i], .at = streams[i]->count}); }
    else if (s->blocking) push(s, (Op){.kind = WAIT, .stream = &legacy, .at = legacy.count});
  }
  Op *o = push(s, op);
  if (op.kind == RECORD) {
    o->event->stream = s; o->event->at = o->at = s->graph ? -2 : s->count; o->event->when = -1;
    o->event->captured = s->graph != NULL;
  }
  return OK;
}

/* start, devices, contexts */
CALL(cuInit, U flags) { return OK; }
CALL(cuDriverGetVersion, int *v) { *v = 13050; return OK; }
CALL(cuGetErrorName, R code, const char **text) {
  static const struct { R code; const char *name; } known[] = {{OK, "CUDA_SUCCESS"}, {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"},
    {NO_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"}, {NO_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT"}, {BAD_HANDLE, "CUDA_ERROR_INVALID_HANDLE"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND"}, {NOT_READY, "CUDA_ERROR_NOT_READY"}, {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED"},
    {CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"}, {CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"},
    {CAPTURE_ISOLATION, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION"}, {CAPTURE_WRONG_THREAD, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD"}};
  for (size_t i = 0; i < sizeof known / sizeof *known; i++) if (known[i].code == code) { *text = known[i].name; return OK; }
  return INVALID_VALUE;
}
CALL(cuGetErrorString, R code, const char **text) { return cuGetErrorName(code, text); }
CALL(cuDeviceGetCount, int *n) { *n = 1; return OK; }
CALL(cuDeviceGet, int *d, int i) { *d = i; return i ? 101 : OK; }
CALL(cuDeviceGetName, char *to, int n, int d) { snprintf(to, n, "stand-in"); return OK; }
CALL(cuDeviceTotalMem_v2, size_t *n, int d) { *n = MEMORY; return OK; }
CALL(cuDeviceGetUuid_v2, char *to, int d) { memset(to, 7, 16); return OK; }
CALL(cuDeviceGetPCIBusId, char *to, int n, int d) { snprintf(to, n, "0000:00:00.0"); return OK; }
CALL(cuDeviceGetAttribute, int *to, int which, int d) {
  *to = which == 75 ? 8 : which == 76 ? 0 : which == 115 ? 1 : which == 10 ? 32 : which == 16 ? 108 : which == 41 ? 1 : 0;
  return OK;
}
CALL(cuDeviceComputeCapability, int *major, int *minor, int d) { *major = 8; *minor = 0; return OK; }
static void set_top(P c) { if (!c) { depth = 0; return; } if (!depth) depth = 1; stack[depth - 1] = c; }
CALL(cuDevicePrimaryCtxRetain, P *c, int d) { LOCKED; primary.retained++; *c = &primary; DONE(OK); }
CALL(cuDevicePrimaryCtxRelease_v2, int d) { LOCKED; primary.retained--; DONE(primary.retained < 0 ? fault(NO_CONTEXT, "the primary context is released more often than retained") : OK); }
CALL(cuDevicePrimaryCtxGetState, int d, U *flags, int *active) { *flags = 0; *active = primary.retained > 0; return OK; }
CALL(cuCtxCreate_v2, P *c, U flags, int d) {
  Context *made = calloc(1, sizeof *made);
  made->live = 1; contexts_live++; *c = stack[depth++] = made;
  return OK;
}
CALL(cuCtxCreate_v4, P *c, P parameters, U flags, int d) { return cuCtxCreate_v2(c, flags, d); }
CALL(cuCtxDestroy_v2, P c) { ((Context *)c)->live = 0; contexts_live--; if (depth && stack[depth - 1] == c) depth--; return OK; }
CALL(cuCtxDetach, P c) { return cuCtxDestroy_v2(c); }
CALL(cuCtxSetCurrent, P c) { set_top(c); return OK; }
CALL(cuCtxGetCurrent, P *c) { *c = depth ? stack[depth - 1] : NULL; return OK; }
CALL(cuCtxPushCurrent_v2, P c) { stack[depth++] = c; return OK; }
CALL(cuCtxPopCurrent_v2, P *c) { if (!depth) return NO_CONTEXT; depth--; if (c) *c = stack[depth]; return OK; }
CALL(cuCtxGetDevice, int *d) { *d = 0; return depth ? OK : NO_CONTEXT; }
CALL(cuCtxGetDevice_v2, int *d, P c) { *d = 0; return OK; }
CALL(cuCtxGetApiVersion, P c, U *v) { *v = 13050; return OK; }
CALL(cuCtxGetStreamPriorityRange, int *least, int *most) { *least = 0; *most = -5; return OK; }
CALL(cuCtxSynchronize, void) { LOCKED; IN_CONTEXT; if (unsafe("cuCtxSynchronize")) DONE(CAPTURE_UNSUPPORTED); run_all(); DONE(OK); }

/* memory */
CALL(cuMemGetInfo_v2, size_t *left, size_t *all) { LOCKED; IN_CONTEXT; *all = MEMORY; *left = MEMORY - in_use(); DONE(OK); }
CALL(cuMemAlloc_v2, A *at, size_t n) {
  LOCKED; IN_CONTEXT;
  if (unsafe("cuMemAlloc")) DONE(CAPTURE_UNSUPPORTED);
  Area *a = take(n, DEVICE);
  if (a) *at = (A)a->at;
  DONE(a ? OK : NO_MEMORY);
}
static R give(char *at, int kind) {
  Area *a = area_of(at);
  if (!a || a->at != at || !a->live || a->kind != kind) return fault(INVALID_VALUE, "memory is freed that is not allocated");
  run_all(); /* the driver waits for the device */
  a->live = 0;
  if (kind == DEVICE) memset(a->at, 0xDD, a->n);
  return OK;
}
CALL(cuMemFree_v2, A at) { LOCKED; IN_CONTEXT; if (unsafe("cuMemFree")) DONE(CAPTURE_UNSUPPORTED); Area *a = area_of((char *)at); DONE(give((char *)at, a && a->kind == POOL ? POOL : DEVICE)); }
static R pinned(P *at, size_t n) {
  LOCKED; IN_CONTEXT;
  if (unsafe("cuMemHostAlloc")) DONE(CAPTURE_UNSUPPORTED);
  Area *a = take(n, PINNED);
  if (a) *at = a->at;
  DONE(a ? OK : NO_MEMORY);
}
CALL(cuMemAllocHost_v2, P *at, size_t n) { return pinned(at, n); }
CALL(cuMemHostAlloc, P *at, size_t n, U flags) { return pinned(at, n); }
CALL(cuMemFreeHost, P at) { LOCKED; IN_CONTEXT; DONE(give(at, PINNED)); }
static R pool_take(A *at, size_t n, P stream) {
  LOCKED; IN_CONTEXT;
  Area *a = take(n, POOL);
  if (!a) DONE(NO_MEMORY);
  *at = (A)a->at;
  R code = add(stream, (Op){.kind = BEGIN, .area = a});
  a->stream = stream_of(stream); a->from = a->stream ? a->stream->count : 0;
  DONE(code);
}
CALL(cuMemAllocAsync, A *at, size_t n, P stream) { return pool_take(at, n, stream); }
CALL(cuMemAllocFromPoolAsync, A *at, size_t n, P pool, P stream) { return pool_take(at, n, stream); }
CALL(cuMemFreeAsync, A at, P stream) { LOCKED; Area *a = area_of((char *)at); DONE(a && a->live ? add(stream, (Op){.kind = END, .area = a}) : fault(INVALID_VALUE, "pool memory is freed that is not allocated")); }
static int the_pool;
CALL(cuDeviceGetDefaultMemPool, P *pool, int d) { *pool = &the_pool; return OK; }
CALL(cuDeviceGetMemPool, P *pool, int d) { *pool = &the_pool; return OK; }
CALL(cuMemPoolCreate, P *pool, P properties) { *pool = &the_pool; return OK; }
CALL(cuMemPoolDestroy, P pool) { return OK; }
CALL(cuMemPoolSetAttribute, P pool, int which, A *value) { if (which == 4) threshold = *value; return OK; }
CALL(cuMemPoolGetAttribute, P pool, int which, A *value) { *value = which == 4 ? threshold : which == 5 || which == 6 ? reserved : 0; return OK; }
CALL(cuMemPoolTrimTo, P pool, size_t least) {
  LOCKED;
  size_t held = 0;
  for (int i = 0; i < area_count; i++) if (areas[i].kind == POOL && areas[i].live) held += areas[i].n;
  reserved = held > least ? held : least < reserved ? least : reserved;
  DONE(OK);
}
static R copy(P stream, A to, A from, size_t n) {
  LOCKED; IN_CONTEXT;
  Area *source = area_of((char *)from);
  Op op = {.kind = COPY, .to = (char *)to, .from = (char *)from, .n = n};
  if (!source) { op.own = op.from = memcpy(malloc(n + 1), (P)from, n); } /* pageable: staged at once */
  DONE(add(stream, op));
}
CALL(cuMemcpyHtoDAsync_v2, A to, P from, size_t n, P s) { return copy(s, to, (A)from, n); }
CALL(cuMemcpyDtoHAsync_v2, P to, A from, size_t n, P s) { return copy(s, (A)to, from, n); }
CALL(cuMemcpyDtoDAsync_v2, A to, A from, size_t n, P s) { return copy(s, to, from, n); }
CALL(cuMemcpyAsync, A to, A from, size_t n, P s) { return copy(s, to, from, n); }
CALL(cuMemcpyHtoD_v2, A to, P from, size_t n) { R code = copy(0, to, (A)from, n); run_to(&legacy, legacy.count); return code; }
CALL(cuMemcpyDtoH_v2, P to, A from, size_t n) { R code = copy(0, (A)to, from, n); run_to(&legacy, legacy.count); return code; }
CALL(cuMemsetD8Async, A to, unsigned char v, size_t n, P s) { LOCKED; DONE(add(s, (Op){.kind = FILL, .to = (char *)to, .value = v, .n = n})); }

/* streams, events, graphs */
CALL(cuStreamCreate, P *s, U flags) {
  LOCKED; IN_CONTEXT;
  for (int i = 0; i < MOST; i++) if (!slots[i].stream) { /* the lowest free one: a handle comes back soon, as in the driver */
    slots[i].stream = new_stream(!(flags & 1));
    *s = slots + i;
    DONE(OK);
  }
  DONE(NO_MEMORY);
}
CALL(cuStreamCreateWithPriority, P *s, U flags, int p) { return cuStreamCreate(s, flags); }
CALL(cuStreamDestroy_v2, P handle) { LOCKED; Stream *s = stream_of(handle); if (s && s != &legacy) ((Slot *)handle)->stream = NULL; DONE(s ? OK : BAD_HANDLE); }
CALL(cuStreamSynchronize, P handle) {
  LOCKED; IN_CONTEXT;
  Stream *s = stream_of(handle);
  if (!s) DONE(BAD_HANDLE);
  if (s->graph) { s->broken = 1; DONE(fault(CAPTURE_UNSUPPORTED, "a capturing stream is waited for")); }
  if (unsafe("cuStreamSynchronize")) DONE(CAPTURE_UNSUPPORTED);
  if (s == &legacy) for (int i = 0; i < stream_count; i++) if (streams[i]->blocking) run_to(streams[i], streams[i]->count);
  run_to(s, s->count);
  if (!threshold) cuMemPoolTrimTo(&the_pool, 0);
  DONE(OK);
}
CALL(cuStreamQuery, P handle) { LOCKED; Stream *s = stream_of(handle); DONE(!s ? BAD_HANDLE : s->done < s->count ? NOT_READY : OK); }
CALL(cuStreamGetFlags, P handle, U *flags) { Stream *s = stream_of(handle); *flags = s && !s->blocking; return s ? OK : BAD_HANDLE; }
CALL(cuStreamGetPriority, P handle, int *p) { *p = 0; return OK; }
CALL(cuStreamGetCtx, P handle, P *c) { *c = &primary; return OK; }
CALL(cuStreamGetDevice, P handle, int *d) { *d = 0; return OK; }
CALL(cuStreamWaitEvent, P handle, Event *e, U flags) {
  LOCKED;
  Stream *s = stream_of(handle);
  if (!s || !e->live) DONE(fault(BAD_HANDLE, "a stream waits for an event that is destroyed"));
  if (s->graph && e->stream && !e->captured) { s->broken = 1; DONE(fault(CAPTURE_ISOLATION, "a capture waits for work outside of it")); }
  say("stream %d waits", s == &legacy ? 0 : (int)((Slot *)handle - slots) + 1);
  DONE(e->stream ? add(handle, (Op){.kind = WAIT, .stream = s->graph ? NULL : e->stream, .at = e->at}) : OK);
}
CALL(cuStreamIsCapturing, P handle, int *state) { LOCKED; Stream *s = stream_of(handle); *state = !s || !s->graph ? 0 : s->broken ? 2 : 1; DONE(s ? OK : BAD_HANDLE); }
CALL(cuStreamBeginCapture_v2, P handle, int mode) {
  LOCKED;
  Stream *s = stream_of(handle);
  if (!s) DONE(BAD_HANDLE);
  if (s == &legacy || s->graph) DONE(CAPTURE_UNSUPPORTED);
  s->graph = calloc(1, sizeof(Graph)); s->graph->live = 1; s->mode = mode; s->by = pthread_self(); s->broken = 0; graphs_live++;
  say("capture begins in mode %d", mode);
  DONE(OK);
}
CALL(cuStreamEndCapture, P handle, Graph **graph) {
  LOCKED;
  Stream *s = stream_of(handle);
  if (!s || !s->graph) DONE(INVALID_VALUE);
  if (s->mode != 2 && !pthread_equal(s->by, pthread_self())) DONE(fault(CAPTURE_WRONG_THREAD, "another thread ends a capture"));
  *graph = s->broken ? NULL : s->graph;
  if (s->broken) graphs_live--;
  s->graph = NULL;
  DONE(s->broken ? CAPTURE_INVALIDATED : OK);
}
CALL(cuStreamGetCaptureInfo_v2, P handle, int *state, A *id, Graph **graph, P *nodes, size_t *count) {
  R code = cuStreamIsCapturing(handle, state);
  Stream *s = stream_of(handle);
  if (id) *id = 1;
  if (graph) *graph = s ? s->graph : NULL;
  if (count) *count = 0;
  return code;
}
CALL(cuStreamGetCaptureInfo_v3, P handle, int *state, A *id, Graph **graph, P *nodes, P *edges, size_t *count) { return cuStreamGetCaptureInfo_v2(handle, state, id, graph, nodes, count); }
CALL(cuThreadExchangeStreamCaptureMode, int *mode) { return OK; }
CALL(cuEventCreate, Event **e, U flags) { LOCKED; IN_CONTEXT; *e = calloc(1, sizeof **e); (*e)->live = 1; (*e)->timed = !(flags & 2); events_live++; DONE(OK); }
CALL(cuEventDestroy_v2, Event *e) { LOCKED; if (!e->live) DONE(fault(BAD_HANDLE, "an event is destroyed twice")); e->live = 0; events_live--; DONE(OK); }
CALL(cuEventRecord, Event *e, P s) { LOCKED; DONE(e->live ? add(s, (Op){.kind = RECORD, .event = e}) : fault(BAD_HANDLE, "a destroyed event is recorded")); }
CALL(cuEventRecordWithFlags, Event *e, P s, U flags) { return cuEventRecord(e, s); }
CALL(cuEventSynchronize, Event *e) { LOCKED; if (!e->live) DONE(BAD_HANDLE); if (unsafe("cuEventSynchronize")) DONE(CAPTURE_UNSUPPORTED); if (e->stream) run_to(e->stream, e->at); DONE(OK); }
CALL(cuEventQuery, Event *e) { LOCKED; DONE(!e->live ? BAD_HANDLE : e->stream && e->stream->done < e->at ? NOT_READY : OK); }
CALL(cuEventElapsedTime, float *ms, Event *a, Event *b) {
  LOCKED;
  if (!a->live || !b->live || !a->timed || !b->timed) DONE(BAD_HANDLE);
  if (a->when < 0 || b->when < 0) DONE(NOT_READY);
  *ms = (float)((b->when - a->when) / 1e3);
  DONE(OK);
}
CALL(cuEventElapsedTime_v2, float *ms, Event *a, Event *b) { return cuEventElapsedTime(ms, a, b); }
CALL(cuGraphInstantiateWithFlags, Graph **exec, Graph *graph, A flags) {
  LOCKED;
  if (!graph || !graph->live) DONE(fault(BAD_HANDLE, "a graph that is none is instantiated"));
  Graph *made = calloc(1, sizeof *made);
  *made = (Graph){.count = graph->count, .live = 1, .exec = 1};
  made->ops = memcpy(malloc((graph->count + 1) * sizeof(Op)), graph->ops ? graph->ops : (P)"", graph->count * sizeof(Op));
  graphs_live++;
  *exec = made;
  DONE(OK);
}
CALL(cuGraphInstantiateWithParams, Graph **exec, Graph *graph, char *parameters) { memset(parameters + 24, 0, 4); return cuGraphInstantiateWithFlags(exec, graph, 0); }
CALL(cuGraphUpload, Graph *g, P s) { return OK; }
CALL(cuGraphClone, Graph **to, Graph *g) { R code = cuGraphInstantiateWithFlags(to, g, 0); if (!code) (*to)->exec = 0; return code; }
CALL(cuGraphGetNodes, Graph *g, P *nodes, size_t *count) { *count = g->count; return OK; }
CALL(cuUserObjectCreate, P *object, P held, void (*end)(P), U references, U flags) { *object = held; return OK; }
CALL(cuUserObjectRelease, P object, U count) { return OK; }
CALL(cuGraphReleaseUserObject, Graph *g, P object, U count) { return OK; }
CALL(cuUserObjectRetain, P object, U count) { return OK; }
CALL(cuGraphNodeFindInClone, P *to, P node, Graph *clone) { return NOT_FOUND; }
CALL(cuGraphChildGraphNodeGetGraph, P node, Graph **g) { return INVALID_VALUE; }
CALL(cuGraphExecUpdate, Graph *exec, Graph *g, P info) { return NOT_SUPPORTED; }
CALL(cuGraphRetainUserObject, Graph *g, P object, U count, U flags) { return OK; }
CALL(cuGraphLaunch, Graph *g, P s) { LOCKED; launches++; DONE(g->live && g->exec ? add(s, (Op){.kind = GRAPH, .graph = g}) : fault(BAD_HANDLE, "a destroyed graph is launched")); }
static R end_graph(Graph *g) { LOCKED; if (!g->live) DONE(fault(BAD_HANDLE, "a graph is destroyed twice")); g->live = 0; graphs_live--; DONE(OK); }
CALL(cuGraphDestroy, Graph *g) { return end_graph(g); }
CALL(cuGraphExecDestroy, Graph *g) { return end_graph(g); }

/* modules: an ELF file's length stands in its header */
CALL(cuModuleLoadData, Module **module, const char *image) {
  LOCKED; IN_CONTEXT;
  if (unsafe("cuModuleLoadData")) DONE(CAPTURE_UNSUPPORTED);
  if (memcmp(image, "\177ELF", 4)) DONE(200);
  uint64_t sections; uint16_t size, count;
  memcpy(&sections, image + 40, 8); memcpy(&size, image + 58, 2); memcpy(&count, image + 60, 2);
  Module *m = calloc(1, sizeof *m);
  m->n = sections + (size_t)size * count; m->image = memcpy(malloc(m->n), image, m->n); m->live = 1; m->context = stack[depth - 1];
  modules_live++;
  *module = m;
  DONE(OK);
}
CALL(cuModuleGetFunction, Function **f, Module *m, const char *name) {
  if (!m->live || !memmem(m->image, m->n, name, strlen(name))) return NOT_FOUND;
  *f = calloc(1, sizeof **f);
  (*f)->module = m;
  snprintf((*f)->name, sizeof (*f)->name, "%s", name);
  return OK;
}
CALL(cuModuleUnload, Module *m) { LOCKED; if (!m->live) DONE(fault(BAD_HANDLE, "a module is unloaded twice")); run_all(); m->live = 0; modules_live--; DONE(OK); }
CALL(cuFuncSetAttribute, Function *f, int which, int value) { if (which == 8) f->shared = value; return OK; }
CALL(cuLaunchKernel, Function *f, U gx, U gy, U gz, U bx, U by, U bz, U shared, P stream, P *values, P *extra) {
  LOCKED; IN_CONTEXT;
  if (!f->module->live) DONE(fault(BAD_HANDLE, "a kernel of an unloaded module is launched"));
  if (f->module->context != stack[depth - 1]) DONE(fault(BAD_HANDLE, "a kernel is launched in another context than it was loaded in"));
  if (shared > 48 << 10 && shared > (U)f->shared) DONE(fault(INVALID_VALUE, "%u bytes of shared memory were not asked for", shared));
  Op op = {.kind = LAUNCH, .touches = next_touches};
  memcpy(op.touched, next_touched, sizeof op.touched);
  next_touches = 0; launches++;
  say("launch %s grid %u %u %u threads %u shared %u", f->name, gx, gy, gz, bx * by * bz, shared);
  DONE(add(stream, op));
}

/* entry points by name, as the newest header defines them */
CALL(cuGetProcAddress_v2, const char *name, P *at, int version, A flags, int *status) {
  static P self;
  char full[200];
  if (!self) { Dl_info here; dladdr((P)cuInit, &here); self = dlopen(here.dli_fname, RTLD_NOW | RTLD_NOLOAD); }
  const char *suffixes[] = {"_v4", "_v3", "_v2", "WithFlags", ""};
  *at = NULL;
  for (int i = strcmp(name, "cuCtxCreate") ? 1 : 0; i < 5 && !*at; i++) {
    if (!strcmp(suffixes[i], "WithFlags") && strcmp(name, "cuGraphInstantiate")) continue;
    snprintf(full, sizeof full, "%s%s", name, suffixes[i]);
    *at = dlsym(self, full);
  }
  if (!*at && getenv("STANDIN_MISSING")) fprintf(stderr, "no %s\n", name);
  if (status) *status = *at ? 0 : 1;
  return *at ? OK : NOT_FOUND;
}
