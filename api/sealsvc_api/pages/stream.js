// The service's events, kept up: EventSource comes back by itself after a broken connection, but not
// after an answer that says no; then it is begun anew, after the last event that was seen.

const NAMES = ["granted", "refused", "state", "conflict", "conflict-ended", "recall", "renewed",
  "reclaimed", "job", "policy", "drift", "alarm", "integrity", "gap"];
const KEPT = 500;

export const seen = [];
const listeners = new Set();
let source = null, last = null, wait = 500, timer = null;

export const onEvent = (listener) => { listeners.add(listener); };

export function open(tell) {
  close();
  const url = last ? `/v1/events?since=${encodeURIComponent(last)}` : "/v1/events?since=0";
  tell("connecting");
  source = new EventSource(url);
  source.onopen = () => { wait = 500; tell("live"); };
  source.onerror = () => {
    tell("lost");
    if (source?.readyState === EventSource.CLOSED) {
      timer = setTimeout(() => open(tell), wait);
      wait = Math.min(wait * 2, 10000);
    }
  };
  for (const name of NAMES) {
    source.addEventListener(name, (message) => {
      last = message.lastEventId;
      const event = JSON.parse(message.data);
      seen.unshift(event);
      seen.length = Math.min(seen.length, KEPT);
      for (const listener of listeners) listener(event);
    });
  }
}

export function close() {
  clearTimeout(timer);
  source?.close();
  source = null;
}
