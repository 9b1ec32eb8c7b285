"use strict";

// node classify.js TEXT...   prints a line for each text, in order: its label and score, or why
// it has none. Exits with 1 if any has none.

const celery = require("celery-node");

const REDIS_URL = process.env.GOLEM_BROKER_URL ?? "redis://127.0.0.1:6379/0";
const QUEUE = process.env.GOLEM_QUEUE ?? "golem";
const TIMEOUT_MS = 30_000;
const POLL_MS = 50;

async function main(texts) {
  // One client sends to one queue: for the bulk lane, make a second with `${QUEUE}.bulk`.
  const client = celery.createClient(REDIS_URL, REDIS_URL, QUEUE);
  try {
    // Without this, celery-node reports a Redis it can't reach as an unhandled rejection.
    await client.isReady();
    const classify = client.createTask("golem.classify");
    // All are sent before the first answer is awaited, so that they can share a batch.
    const jobs = texts.map((text) => classify.applyAsync([text], { top_k: 1 }));
    const lines = await Promise.all(jobs.map(line));
    lines.forEach(({ text }) => console.log(text));
    return lines.every(({ answered }) => answered) ? 0 : 1;
  } finally {
    await client.disconnect();
  }
}

async function line(job) {
  try {
    const { label, score } = await job.get(TIMEOUT_MS, POLL_MS);
    return { answered: true, text: `${label} ${score.toFixed(3)}` };
  } catch (error) {
    return { answered: false, text: sentence(error) };
  }
}

// celery-node puts what Celery stored of the exception on the error: exc_type and exc_message,
// the exception's arguments, of which Golem's first is the sentence for people.
function sentence({ message, exc_type: type, exc_message: args }) {
  if (message === "TIMEOUT") return `no answer within ${TIMEOUT_MS / 1000} s: does a worker run?`;
  return type ? `${type}: ${[args].flat()[0]}` : message;
}

main(process.argv.slice(2)).then(
  (code) => { process.exitCode = code; },
  (error) => {
    console.error(`Redis at ${new URL(REDIS_URL).host} can't be used: ${error.message}`);
    process.exitCode = 1;
  },
);
