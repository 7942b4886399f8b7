// SPDX-License-Identifier: Apache-2.0

// Makes calls with the official npm client, each under a nonce of its own, and prints a JSON line for each: what went
// out and what came in, byte for byte, and what the client made of it.
//
//     node calls.mjs CHAT_URL EMBEDDINGS_URL

import { randomBytes } from "node:crypto";
import OpenAI from "openai";

const [chatUrl, embeddingsUrl] = process.argv.slice(2);
const messages = [{ role: "user", content: "Say hello." }];
const model = "smollm2";
const few = { max_tokens: 12, temperature: 0 };
const tool = {
  type: "function",
  function: {
    name: "get_weather",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
};

let exchange; // the last one

// What the client uses in the place of fetch: the same, and the bytes are kept beside it.
async function kept(url, options) {
  const nonce = randomBytes(16).toString("hex");
  const headers = new Headers(options.headers);
  headers.set("Quotary-Nonce", nonce);
  const answer = await fetch(url, { ...options, headers });
  const [ours, theirs] = answer.body ? answer.body.tee() : [null, null];
  exchange = {
    nonce,
    url: String(url),
    status: answer.status,
    headers: Object.fromEntries(answer.headers),
    request: Buffer.from(options.body ?? "").toString("base64"),
    body: ours ? new Response(ours).arrayBuffer() : new ArrayBuffer(0),
  };
  return new Response(theirs, { status: answer.status, statusText: answer.statusText, headers: answer.headers });
}

async function report(name, work) {
  let result;
  try {
    result = await work();
  } catch (error) {
    result = { error: error.constructor.name };
  }
  const body = Buffer.from(await exchange.body).toString("base64");
  console.log(JSON.stringify({ name, result, ...exchange, body }));
}

async function all(stream) {
  const items = [];
  for await (const item of stream) items.push(item);
  return items;
}

const text = (chunks) => chunks.map((chunk) => chunk.choices[0]?.delta?.content ?? "").join("");
const options = { apiKey: "k", maxRetries: 0, fetch: kept };
const chat = new OpenAI({ ...options, baseURL: `${chatUrl}/v1` });
const embeddings = new OpenAI({ ...options, baseURL: `${embeddingsUrl}/v1` });

await report("chat", async () => {
  const answer = await chat.chat.completions.create({ model, messages, ...few });
  return { text: answer.choices[0].message.content, attestation: answer.attestation };
});
await report("chat stream", async () => {
  const asked = { model, messages, ...few, stream: true, stream_options: { include_usage: true } };
  const chunks = await all(await chat.chat.completions.create(asked));
  const usage = chunks.find((chunk) => chunk.usage)?.usage;
  return { text: text(chunks), usage, attestation: chunks.at(-1).attestation };
});
await report("chat stream helper", async () => {
  const answer = await chat.chat.completions.stream({ model, messages, ...few }).finalChatCompletion();
  return { text: answer.choices[0].message.content };
});
await report("chat with tools", async () => {
  const answer = await chat.chat.completions.create({ model, messages, tools: [tool], ...few });
  return { finish: answer.choices[0].finish_reason };
});
await report("completions", async () => {
  const answer = await chat.completions.create({ model, prompt: "Once upon", ...few });
  return { text: answer.choices[0].text };
});
await report("completions stream", async () => {
  const chunks = await all(await chat.completions.create({ model, prompt: "Once upon", ...few, stream: true }));
  return { text: chunks.map((chunk) => chunk.choices[0]?.text ?? "").join("") };
});
await report("embeddings", async () => {
  const answer = await embeddings.embeddings.create({ model, input: "a sentence" });
  return { length: answer.data[0].embedding.length };
});
await report("responses", async () => {
  const answer = await chat.responses.create({ model, input: "Say hello.", max_output_tokens: 12 });
  return { text: answer.output_text };
});
await report("responses stream", async () => {
  const asked = { model, input: "Say hello.", max_output_tokens: 12, stream: true };
  const events = await all(await chat.responses.create(asked));
  return { text: events.filter((event) => event.type === "response.output_text.delta").map((event) => event.delta).join("") };
});
await report("models", async () => {
  const answer = await chat.models.list();
  return { models: answer.data.map((one) => one.id) };
});
await report("over-long prompt", async () => {
  const long = [{ role: "user", content: "word ".repeat(3000) }];
  return await chat.chat.completions.create({ model, messages: long, ...few });
});
await report("not found", async () => {
  return await chat.post("/no/such/path", { body: {} });
});
