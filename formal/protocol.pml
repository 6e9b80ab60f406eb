/* Election, lease, dispatch, reaping and completion: what formal/README.md calls the protocol.
 *
 * Each guarded step is one statement or one transaction as PostgreSQL makes it visible: a step changes what others see
 * in one go, and between two steps anything may happen. Clocks are not modelled: a lease may run out at any moment,
 * so what holds here holds for any clocks, pauses and delays. Steps are named after the SQL blocks they stand for;
 * tests/test_formal.py holds that those exist.
 *
 * Compiled with one of the following, a guard is missing and spin has to find how that breaks a promise:
 *   UNFENCED_DISPATCH    a leader's write does not ask whether it still leads
 *   LOCK_IN_CTE          the lead is taken inside the statement that reads what is processing, behind its snapshot
 *   STAYS_AFTER_LOSS     a claim whose answer was lost does not end the term
 *   UNFENCED_COMPLETION  a run ends its job by id alone
 *   NO_EVICTION          a takeover does not end the sessions of the holder before it
 */

#ifndef DISPATCHERS
#define DISPATCHERS 3
#endif
#define WORKERS 2
#define JOBS 3
#ifndef LIMIT
#define LIMIT 2 /* how many jobs may be processing at once */
#endif
#ifndef TERMS
#define TERMS 3 /* how often somebody may become leader; the last leader does not fail */
#endif
#ifndef STARTS
#define STARTS 2 /* how often a worker registers; its last lease does not run out */
#endif
#ifndef ATTEMPTS
#define ATTEMPTS 2 /* max_attempts of every job */
#endif
#ifndef DEATHS
#define DEATHS 1 /* dispatchers that are killed or freeze for good */
#endif

#define NOBODY 15
#define GHOST DISPATCHERS /* the session of a statement whose client has given up on it */
#define SESSIONS (DISPATCHERS + 1)
#define RUN(start, job) ((start) * JOBS + (job))

mtype = { pending, processing, ended }; /* a job; `ended` is a row of finished_jobs */
mtype = { follower, locked, bare, taking, elected, leading, waiting, resigning, gone }; /* a dispatcher */
mtype = { idle, sent, fenced }; /* a transaction */

/* The database. */
byte lease_holder = NOBODY;
byte lease_epoch = 0;
bool lease_expired = false;
byte row_lock = NOBODY;      /* the session that holds the row of the leader */
byte advisory_lock = NOBODY; /* the dispatcher whose session holds it */
mtype state[JOBS] = pending;
byte attempt[JOBS];
byte owner[JOBS];            /* worker_id is owner and start together: an id for each start */
byte start[JOBS];
byte records[JOBS];          /* rows of finished_jobs */
byte left = JOBS;            /* rows of jobs */

/* Transactions of dispatchers, as the server has them. */
mtype transaction[SESSIONS] = idle;
bool reaps[SESSIONS];
byte of_epoch[SESSIONS];
byte to_worker[SESSIONS];
byte to_start[SESSIONS];
byte sender[SESSIONS]; /* whose session: itself, save for the ghost's */

/* What dispatchers believe. */
mtype phase[DISPATCHERS] = follower;
byte term[DISPATCHERS];
typedef Memory { byte attempt[JOBS] };
Memory memory[DISPATCHERS]; /* the running set: the attempt of each job that is processing, else 0 */
byte deaths = 0;
byte seen = 0; /* dispatchers are alike: they come to stand for the first time in order */

/* Workers. */
byte starts[WORKERS];
bool expired[WORKERS];
typedef Runs { byte attempt[STARTS * JOBS] };
Runs runs[WORKERS];

hidden byte i; /* scratch inside one step */
hidden byte n;

#define sender_of(session) (session < GHOST -> session : sender[session])
#define leads(d) (lease_holder == d && lease_epoch == term[d] && !lease_expired)
#define may_fail (lease_epoch < TERMS && left > 0)
#define believes(d) (phase[d] == elected || phase[d] == leading || phase[d] == waiting)
#define runs_in_memory(d) \
  ((memory[d].attempt[0] > 0) + (memory[d].attempt[1] > 0) + (memory[d].attempt[2] > 0))
#define any_pending (state[0] == pending || state[1] == pending || state[2] == pending)
#define stale(job) (state[job] == processing && (start[job] < starts[owner[job]] || expired[owner[job]]))
#define any_stale (stale(0) || stale(1) || stale(2))
#define is_over(d, job) \
  (memory[d].attempt[job] != 0 && (state[job] != processing || attempt[job] != memory[d].attempt[job]))
#define hears(d) \
  (phase[d] == leading && runs_in_memory(d) >= LIMIT && (is_over(d, 0) || is_over(d, 1) || is_over(d, 2)))
#define can_dispatch(d) (phase[d] == leading && runs_in_memory(d) < LIMIT && any_pending)
#define has_something(w) \
  ((state[0] == processing && owner[0] == w) || (state[1] == processing && owner[1] == w) || \
   (state[2] == processing && owner[2] == w))
#define run_of(w, old, job) runs[w].attempt[RUN(old, job)]
#define is_owner(w, old, job) \
  (state[job] == processing && owner[job] == w && start[job] == old && attempt[job] == run_of(w, old, job))
#ifdef UNFENCED_COMPLETION
#define holds(w, old, job) (state[job] != ended)
#else
#define holds(w, old, job) is_owner(w, old, job)
#endif

inline count_processing() {
  i = 0; n = 0;
  do
  :: i < JOBS -> n = n + (state[i] == processing -> 1 : 0); i++
  :: else -> break
  od;
  i = 0
}

/* A job leaves the hot table, for the history. */
inline finish(job) {
  state[job] = ended; attempt[job] = 0; owner[job] = 0; start[job] = 0;
#ifndef UNFENCED_COMPLETION
  /* Nothing can come of its other runs any more: no need to tell states with and without them apart. */
  run_of(0, 0, job) = 0; run_of(1, 0, job) = 0;
#if STARTS > 1
  run_of(0, 1, job) = 0; run_of(1, 1, job) = 0;
#endif
#endif
  left--;
  records[job]++;
  assert(records[job] == 1)
}

inline put_back(job) { state[job] = pending; owner[job] = 0; start[job] = 0 }

inline forget(d) {
  i = 0;
  do
  :: i < JOBS -> memory[d].attempt[i] = 0; i++
  :: else -> break
  od;
  i = 0
}

/* leader.take. What leaders that were deposed remember does not matter any more: they may try what they like. */
inline lead(d) {
  lease_holder = d; lease_epoch++; lease_expired = false; term[d] = lease_epoch;
  n = 0;
  do
  :: n < DISPATCHERS -> if :: n != d -> forget(n) :: else fi; n++
  :: else -> break
  od;
  n = 0
}

/* jobs.processing */
inline read_processing(d) {
  i = 0;
  do
  :: i < JOBS -> memory[d].attempt[i] = (state[i] == processing -> attempt[i] : 0); i++
  :: else -> break
  od;
  i = 0
}

inline roll_back(session) {
  if :: row_lock == session -> row_lock = NOBODY :: else fi;
  transaction[session] = idle; reaps[session] = false; of_epoch[session] = 0; to_worker[session] = 0;
  to_start[session] = 0; sender[session] = 0
}

/* The client goes on without an answer; the server still has the statement, or has it no more. */
inline give_up(d) {
  if
  :: transaction[d] != idle && transaction[GHOST] == idle && !(reaps[d]) ->
     transaction[GHOST] = transaction[d]; of_epoch[GHOST] = of_epoch[d]; to_worker[GHOST] = to_worker[d];
     to_start[GHOST] = to_start[d]; sender[GHOST] = d;
     if :: row_lock == d -> row_lock = GHOST :: else fi;
     transaction[d] = idle; of_epoch[d] = 0; to_worker[d] = 0; to_start[d] = 0
  :: else -> roll_back(d)
  fi
}

/* The session with the lock is closed; nothing is believed any more. */
inline lose(d) {
  if :: advisory_lock == d -> advisory_lock = NOBODY :: else fi;
  give_up(d);
  forget(d);
  term[d] = 0; phase[d] = follower
}

/* leader.evict: every session of the holder, those it has given up on too. */
inline evict() {
#ifndef NO_EVICTION
  if :: advisory_lock == lease_holder -> advisory_lock = NOBODY :: else fi;
  if :: transaction[GHOST] != idle && sender[GHOST] == lease_holder -> roll_back(GHOST) :: else fi;
  if :: transaction[lease_holder] != idle -> roll_back(lease_holder) :: else fi
#else
  skip
#endif
}

/* The whole effect of a leader's transaction, seen by all at its commit. */
inline commit(session) {
  /* One effective leader: nothing is written in an epoch after the next has begun, nor by anybody else. */
  assert(lease_epoch == of_epoch[session] && lease_holder == sender_of(session));
  i = 0;
  if
  :: reaps[session] -> /* workers.mark_dead, jobs.stale_of_workers, then jobs.finish or jobs.put_back */
     do
     :: i < JOBS ->
        if
        :: stale(i) ->
           if :: attempt[i] < ATTEMPTS -> put_back(i) :: else -> finish(i) fi
        :: else
        fi;
        i++
     :: else -> break
     od
  :: else -> /* jobs.dispatch: the first that is pending, in their order */
     do
     :: i < JOBS && state[i] != pending -> i++
     :: else -> break
     od;
     if
     :: i < JOBS ->
        state[i] = processing; attempt[i]++; owner[i] = to_worker[session]; start[i] = to_start[session];
        /* jobs.fetch: the worker has it from here on. That it hears of it late is the same as that it is slow. */
        run_of(owner[i], start[i], i) = attempt[i];
        if :: session < GHOST && phase[session] == waiting -> memory[session].attempt[i] = attempt[i] :: else fi
     :: else
     fi
  fi;
  count_processing();
  assert(n <= LIMIT); /* the limit */
  n = 0;
  if :: session < GHOST && phase[session] == waiting -> phase[session] = leading :: else fi;
  roll_back(session) /* the transaction is over; what it did stays */
}

inline hear(d) {
  i = 0;
  do
  :: i < JOBS -> if :: is_over(d, i) -> memory[d].attempt[i] = 0 :: else fi; i++
  :: else -> break
  od;
  i = 0
}

inline send(d, reap, w) {
  transaction[d] = sent; reaps[d] = reap; of_epoch[d] = term[d];
  to_worker[d] = w; to_start[d] = (reap -> 0 : starts[w]);
  phase[d] = waiting
}

proctype Dispatcher(byte d) {
end:
  do
  /* Standing for election. */
  :: d_step { /* leader.try_lock, leader.read_lease */
       left > 0 && phase[d] == follower && advisory_lock == NOBODY && may_fail && d <= seen ->
       advisory_lock = d; phase[d] = locked;
       if :: seen == d -> seen++ :: else fi }
  :: d_step { /* leader.try_lock (refused), leader.read_lease, leader.evict; the sessions may take a moment to end */
       left > 0 && phase[d] == follower && advisory_lock != NOBODY && lease_expired && lease_holder != NOBODY && may_fail &&
       d <= seen ->
       if :: lease_holder != d -> evict() :: else fi;
       phase[d] = bare;
       if :: seen == d -> seen++ :: else fi }
  :: d_step { /* leader.try_lock, once more */
       phase[d] == bare && advisory_lock == NOBODY -> advisory_lock = d; phase[d] = locked }
#ifndef NO_EVICTION
  :: d_step { /* leader.evict: with the lock too, for another session of the holder may hold the row */
       (phase[d] == locked || phase[d] == bare || phase[d] == taking) && row_lock != NOBODY && lease_expired &&
       lease_holder != d && lease_holder != NOBODY -> evict() }
#endif
  :: d_step { /* the server ended the session meanwhile, and with it the lock */
       (phase[d] == locked || phase[d] == taking) && advisory_lock != d -> forget(d); phase[d] = follower }
#ifdef LOCK_IN_CTE
  :: d_step { phase[d] == locked -> read_processing(d); phase[d] = taking } /* the snapshot, then the wait */
  :: d_step {
       phase[d] == taking && advisory_lock == d && row_lock == NOBODY && may_fail ->
       lead(d); phase[d] = leading }
  :: d_step {
       phase[d] == taking && advisory_lock == d && !may_fail -> advisory_lock = NOBODY; forget(d); phase[d] = follower }
#endif
  :: d_step { /* leader.take: waits for the row, then asks again */
#ifdef LOCK_IN_CTE
       phase[d] == bare &&
#else
       ((phase[d] == locked && advisory_lock == d) || phase[d] == bare) &&
#endif
       row_lock == NOBODY ->
       if
       :: may_fail && (lease_expired || lease_holder == NOBODY || phase[d] == locked) ->
          lead(d); phase[d] = elected
       :: else -> /* leader.unlock */
          if :: advisory_lock == d -> advisory_lock = NOBODY :: else fi;
          phase[d] = follower
       fi }
  :: d_step { phase[d] == elected -> read_processing(d); phase[d] = leading } /* jobs.processing */

  /* Leading. */
  :: d_step { hears(d) -> hear(d) } /* jobs.no_longer_processing; told of an end or not, it is in time where there is room */
  :: d_step { can_dispatch(d) -> send(d, false, 0) } /* leader.fence and jobs.dispatch, in one round trip, */
  :: d_step { can_dispatch(d) && (attempt[0] > 0 || state[0] == ended) -> send(d, false, 1) } /* to a worker of the leader's choice */
  :: d_step { phase[d] == leading && any_stale -> send(d, true, 0) } /* workers.suspects, then leader.fence */
  :: d_step { phase[d] == leading && may_fail -> /* leader.unlock, then leader.resign */
       if :: advisory_lock == d -> advisory_lock = NOBODY :: else fi;
       forget(d); phase[d] = resigning }
  :: d_step {
       phase[d] == resigning && row_lock == NOBODY ->
       if :: lease_holder == d && lease_epoch == term[d] -> lease_holder = NOBODY; lease_expired = true :: else fi;
       term[d] = 0; phase[d] = follower }

  /* Leading no more. */
  :: d_step { believes(d) && !leads(d) -> lose(d) } /* leader.renew: no row */
  :: d_step { phase[d] == waiting && transaction[d] == idle -> lose(d) } /* the session was ended: no answer */
  :: d_step { phase[d] == waiting && !reaps[d] && may_fail -> /* the answer is lost on its way, or it is late */
#ifdef STAYS_AFTER_LOSS
       give_up(d); read_processing(d); phase[d] = leading
#else
       lose(d)
#endif
     }
  :: d_step { believes(d) && advisory_lock == d && may_fail -> advisory_lock = NOBODY } /* the session with the lock is gone */
  :: d_step { /* kill -9, or SIGSTOP for good; what the server was sent goes on */
       phase[d] != gone && phase[d] != follower && deaths < DEATHS && may_fail -> forget(d); term[d] = 0; deaths++; phase[d] = gone }
  :: d_step { phase[d] == gone && advisory_lock == d -> advisory_lock = NOBODY } /* at once, or at idle_session_timeout */
  od
}

/* What the server does with what was sent to it. */
proctype Session(byte s) {
end:
  do
  :: d_step { /* leader.fence, once the row is free */
       transaction[s] == sent && row_lock == NOBODY ->
#ifdef UNFENCED_DISPATCH
       transaction[s] = fenced
#else
       if
       :: lease_holder == sender_of(s) && lease_epoch == of_epoch[s] && !lease_expired ->
          row_lock = s; transaction[s] = fenced
       :: else -> roll_back(s)
       fi
#endif
     }
  :: d_step { /* a transaction of several round trips needs its client to go on */
       transaction[s] == fenced && (!reaps[s] || phase[s] == waiting) -> commit(s) }
  :: d_step { s == GHOST && transaction[s] != idle -> roll_back(s) } /* the server notices, or a time-out comes */
  od
}

/* What one handler may come to: the run of `job` that was begun under the worker's registration `old`. */
inline handle(w, old, job) {
  if
  :: d_step { /* jobs.finish: completed or failed */
       holds(w, old, job) -> assert(is_owner(w, old, job)); /* what was given up ends nothing */
       finish(job); run_of(w, old, job) = 0 }
  :: d_step { /* jobs.put_back: a retry */
       holds(w, old, job) && attempt[job] < ATTEMPTS -> assert(is_owner(w, old, job));
       put_back(job); run_of(w, old, job) = 0 }
  :: d_step { !holds(w, old, job) -> run_of(w, old, job) = 0 } /* no row: stale, counted, dropped */
  :: d_step { old < starts[w] || expired[w] -> run_of(w, old, job) = 0 } /* stopped, its lease is lost: nothing is written */
  fi
}

proctype Worker(byte w) {
end:
  do
  :: d_step { starts[w] < STARTS - 1 && !expired[w] && has_something(w) -> expired[w] = true } /* its lease runs out */
  :: d_step { expired[w] -> expired[w] = false; starts[w]++ } /* workers.beat: no row; workers.register. Handlers linger. */
  :: atomic { run_of(w, 0, 0) != 0 -> handle(w, 0, 0) }
  :: atomic { run_of(w, 0, 1) != 0 -> handle(w, 0, 1) }
  :: atomic { run_of(w, 0, 2) != 0 -> handle(w, 0, 2) }
#if STARTS > 1
  :: atomic { run_of(w, 1, 0) != 0 -> handle(w, 1, 0) }
  :: atomic { run_of(w, 1, 1) != 0 -> handle(w, 1, 1) }
  :: atomic { run_of(w, 1, 2) != 0 -> handle(w, 1, 2) }
#endif
  od
}

proctype Clock() {
end:
  do
  :: d_step { lease_holder != NOBODY && !lease_expired && may_fail -> lease_expired = true }
  od
}

/* No lost job: when nothing can happen any more, every job has ended. */
proctype Judge() {
  timeout -> assert(left == 0)
}

init {
  atomic {
    i = 0;
    do :: i < DISPATCHERS -> run Dispatcher(i); i++ :: else -> break od;
    i = 0;
    do :: i < SESSIONS -> run Session(i); i++ :: else -> break od;
    i = 0;
    do :: i < WORKERS -> run Worker(i); i++ :: else -> break od;
    run Clock(); run Judge()
  }
}
