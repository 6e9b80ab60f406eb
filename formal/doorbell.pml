/* The doorbell: producers that NOTIFY only where the leader sleeps, and a leader that never sleeps through a job.
 *
 * Polling is left out where the leader sleeps with the bell in its hands, so that a wake-up that is lost is lost for
 * good: then nothing can happen any more while a job lies there, and Judge says so. Where the bell's lock is refused the
 * leader polls by design (pgqueue/dispatcher/bell.py), and does so here.
 *
 * Compiled with one of the following, spin has to find the lost wake-up:
 *   NO_SECOND_SCAN  the leader goes to sleep without looking once more after the lock was granted
 *   EARLY_RELEASE   a producer holds the lock to the end of its statement, not to that of its transaction
 *   RING_AT_ONCE    a producer's NOTIFY goes out before its job can be seen
 */

#ifndef PRODUCERS
#define PRODUCERS 3
#endif
#ifndef TRANSACTIONS
#define TRANSACTIONS 2 /* of each producer */
#endif
#ifndef ENQUEUES
#define ENQUEUES 2 /* of each transaction */
#endif

byte visible = 0;    /* jobs that are committed and pending */
byte shared = 0;     /* producers that hold the bell's lock */
bool exclusive;      /* the leader holds it */
bool queued;         /* the leader waits for it: who holds it not yet is refused from here on */
bool rung;           /* the leader's listener heard a NOTIFY */

#define grantable (!exclusive && !queued)

proctype Producer() {
  byte transactions = 0;
  byte jobs = 0;     /* of this transaction */
  byte done = 0;     /* enqueues of this transaction, those of rolled-back savepoints among them */
  bool holds = false;
  bool rings = false;
  do
  :: transactions < TRANSACTIONS ->
     do
     :: done < ENQUEUES ->
        if
        :: d_step { /* jobs.enqueue, jobs.enqueue_many, jobs.ring: got the lock, or has it already */
             grantable || holds -> jobs++; done++;
             if :: !holds -> shared++; holds = true :: else fi }
#ifdef EARLY_RELEASE
           d_step { holds = false; shared-- }
#endif
        :: d_step { !grantable && !holds -> jobs++; done++; rings = true } /* refused: pg_notify, sent at the commit */
        :: done++ /* either of them in a savepoint that is rolled back: job, lock and NOTIFY go */
        fi
#ifdef RING_AT_ONCE
        d_step { if :: rings -> rung = true; rings = false :: else fi }
#endif
     :: done > 0 -> break
     od;
     if
     :: d_step { visible = visible + jobs; jobs = 0 }; /* COMMIT: first it can be seen, then locks go and NOTIFY comes */
        d_step {
          if :: holds -> shared--; holds = false :: else fi;
          if :: rings -> rung = true; rings = false :: else fi }
     :: d_step { /* ROLLBACK */
          jobs = 0; rings = false;
          if :: holds -> shared--; holds = false :: else fi }
     fi;
     d_step { transactions++; done = 0 }
  :: else -> break
  od
}

proctype Leader() {
  bool found = false;
end:
  do
  :: if
     :: d_step { shared == 0 -> exclusive = true } /* leader.try_bell */
     :: d_step { shared > 0 -> visible = 0 } -> /* refused: a pause of 2 to 50 ms, then jobs.lanes and jobs.dispatch */
        if
        :: true -> goto again
        :: d_step { queued = true } -> /* leader.wait_bell */
           do
           :: d_step { shared == 0 -> queued = false; exclusive = true } -> break
           :: d_step { shared > 0 && visible > 0 -> visible = 0 } /* a scan every 100 ms */
           od
        fi
     fi;
     do
     ::
#ifndef NO_SECOND_SCAN
        d_step { found = (visible > 0); visible = 0 } /* jobs.lanes and jobs.dispatch, once more */
#endif
        if
        :: found -> break
        :: else -> d_step { rung -> rung = false } /* asleep; no poll here */
           break
        fi
     od;
     /* leader.leave_bell, beside the next look at the jobs: before it or after it */
     if
     :: d_step { exclusive = false }; d_step { visible = 0 }
     :: d_step { visible = 0 }; d_step { exclusive = false }
     fi;
     found = false;
again: skip
  od
}

proctype Judge() {
  timeout -> assert(visible == 0)
}

init {
  byte i = 0;
  atomic {
    do :: i < PRODUCERS -> run Producer(); i++ :: else -> break od;
    run Leader(); run Judge()
  }
}
