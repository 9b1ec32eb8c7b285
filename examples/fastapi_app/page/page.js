"use strict";

// Sends the lines to /bulk and reads their answers from /stream. The ids of the jobs that are not
// answered yet are all the state there is: whenever a stream ends early, the next one asks for them.
// A text only ever becomes the text of an element, never markup.

const FIRST_PAUSE_MS = 500;
const MOST_PAUSE_MS = 8000;

const form = document.getElementById("form");
const textarea = document.getElementById("texts");
const button = document.getElementById("send");
const problem = document.getElementById("problem");
const progress = document.getElementById("progress");
const table = document.getElementById("answers");

let sent = 0;
let answered = 0;

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const texts = textarea.value.split("\n").map((line) => line.trim()).filter(Boolean);
  button.disabled = true;
  problem.textContent = "";
  try {
    if (texts.length === 0) throw new Error("There is no text to send.");
    const response = await post("/bulk", { texts });
    const { ids } = await response.json();
    follow(new Map(ids.map((id, number) => [id, addRow(texts[number])])));
  } catch (error) {
    problem.textContent = error.message;
  } finally {
    button.disabled = false;
  }
});

// Ends when every row has its answer, over as many streams as that takes.
async function follow(rows) {
  let pause = FIRST_PAUSE_MS;
  while (rows.size > 0) {
    try {
      await readStream(rows);
      pause = FIRST_PAUSE_MS;
    } catch (error) {
      const missing = rows.size === 1 ? "1 answer is" : `${rows.size} answers are`;
      problem.textContent = `${error.message} ${missing} still to come; asking again.`;
      await new Promise((resolve) => setTimeout(resolve, pause));
      pause = Math.min(pause * 2, MOST_PAUSE_MS);
    }
  }
}

// Returns when the application ended the stream; one that breaks off is an Error.
async function readStream(rows) {
  for await (const { event, data } of events("/stream", { ids: [...rows.keys()] })) {
    if (event === "open") problem.textContent = "";
    else if (event === "answer") showAnswer(rows, data);
    else if (event === "problem") throw new Error(data);
    else if (event === "pause") showProgress("; none in the last minute. Does a worker run?");
    if (event === "pause" || event === "end") return;
  }
  throw new Error("The connection was lost.");
}

// A refusal becomes an Error whose message is for people.
async function post(path, body) {
  let response;
  try {
    response = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
  } catch {
    throw new Error("The application can't be reached.");
  }
  if (response.ok) return response;
  throw new Error(await reason(response));
}

async function reason(response) {
  let detail;
  try {
    ({ detail } = await response.json());
  } catch {
    // Not the application's own answer, but some proxy's.
  }
  if (Array.isArray(detail)) detail = detail.map((item) => item.msg).join("; ");
  return detail || `The application answered ${response.status} ${response.statusText}.`;
}

// The events of one stream: blocks of lines, each block ended by an empty line. EventSource would
// read them as well, but it can't send the ids in a body, and a URL holds too few.
async function* events(path, body) {
  const response = await post(path, body);
  yield { event: "open" };
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch(() => ({ done: true }));
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const fields = new Map(block.split("\n").map(field));
      if (fields.has("event")) {
        yield { event: fields.get("event"), data: JSON.parse(fields.get("data") ?? "null") };
      }
    }
  }
}

function field(line) {
  const colon = line.indexOf(": ");
  return [line.slice(0, colon), line.slice(colon + 2)];
}

function addRow(text) {
  const row = table.tBodies[0].insertRow();
  row.insertCell().textContent = text;
  const label = row.insertCell();
  label.textContent = "waiting";
  label.className = "waiting";
  row.insertCell();
  table.hidden = false;
  sent += 1;
  showProgress();
  return row;
}

function showAnswer(rows, { id, answer, error }) {
  const [, label, score] = rows.get(id).cells;
  rows.delete(id);
  label.textContent = error ? error.message : answer.label;
  label.className = error ? "failed" : "";
  if (answer) {
    const meter = document.createElement("meter");
    meter.value = answer.score;
    meter.setAttribute("aria-label", `Score of ${answer.label}`);
    score.append(meter, ` ${(100 * answer.score).toFixed(1)} %`);
  }
  answered += 1;
  showProgress();
}

function showProgress(note = "") {
  progress.textContent = `${answered} of ${sent} answered${note}`;
}
