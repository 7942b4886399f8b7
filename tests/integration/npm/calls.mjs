// SPDX-License-Identifier: Apache-2.0
// Asks through `verifying` with the official client, and prints how each case ended, one JSON object a line.
// Arguments: the module under test, a JSON object with the policy, the command, and a URL for each case.

import OpenAI from "openai";

const { verifying, verdict } = await import(process.argv[2]);
const { policy, command, plain, streamed, signed, honest } = JSON.parse(process.argv[3]);
const messages = [{ role: "user", content: "hi" }];

function client(url, options = {}) {
  const fetch = verifying({ policy, command, ...options });
  return new OpenAI({ baseURL: `${url}/v1`, apiKey: "k", fetch, maxRetries: 2 });
}

async function ask(url, options) {
  const { data, response } = await client(url, options).chat.completions.create({ model: "m", messages }).withResponse();
  return { text: data.choices[0].message.content, claims: (await verdict(response)).claims };
}

async function stream(url) {
  const { data, response } = await client(url)
    .chat.completions.create({ model: "m", messages, stream: true })
    .withResponse();
  let text = "";
  for await (const chunk of data) text += chunk.choices[0]?.delta.content ?? "";
  return { text, claims: (await verdict(response)).claims };
}

async function report(name, work) {
  let found;
  try {
    found = await work();
  } catch (error) {
    found = { error: error.name === "Error" ? error.constructor.name : error.name, message: error.message };
  }
  console.log(JSON.stringify({ name, ...found }));
}

for (const [name, url] of Object.entries(plain)) await report(`plain: ${name}`, () => ask(url));
for (const [name, url] of Object.entries(streamed)) await report(`streamed: ${name}`, () => stream(url));

await report("tools", async () => {
  const tools = [{ type: "function", function: { name: "look_up", parameters: { type: "object" } } }];
  const { data, response } = await client(honest)
    .chat.completions.create({ model: "m", messages, tools })
    .withResponse();
  return { text: data.choices[0].message.tool_calls[0].function.arguments, claims: (await verdict(response)).claims };
});
await report("stream helper", async () => {
  const helper = client(honest).chat.completions.stream({ model: "m", messages });
  return { text: (await helper.finalMessage()).content };
});
await report("error of the engine", async () => {
  await client(honest).chat.completions.create({ model: "refused", messages });
});
await report("models, required", () => client(honest).models.list());
await report("models, allowed", async () => {
  const models = await client(honest, { unattested: ["/v1/models"] }).models.list();
  return { text: models.data[0].id };
});
await report("closed early", async () => {
  const { data, response } = await client(honest)
    .chat.completions.create({ model: "m", messages, stream: true })
    .withResponse();
  for await (const _ of data) break;
  await verdict(response);
});
await report("too long", () => ask(honest, { limit: 100 }));
await report("no such policy", () => ask(honest, { policy: "/nonexistent/policy.toml" }));
await report("a signed policy", () => ask(honest, signed));
await report("a signed policy without a key", () => ask(honest, { policy: signed.policy }));
await report("no such command", () => ask(honest, { command: ["/nonexistent/attest"] }));
await report("many at once", async () => {
  const found = await Promise.all(Array.from({ length: 2 }, () => stream(honest)));
  return { text: String(new Set(found.map(({ claims }) => claims.find((c) => c.name === "output_id").value)).size) };
});
for (const [name, urls] of [["plain", plain], ["streamed", streamed]])
  await report(`before the error, ${name}`, async () => {
    const fetch = verifying({ policy, command });
    const body = JSON.stringify({ model: "m", messages, stream: name === "streamed" });
    const response = await fetch(`${urls["a word"]}/v1/chat/completions`, { method: "POST", body });
    const decoder = new TextDecoder();
    let text = "";
    try {
      for await (const piece of response.body) text += decoder.decode(piece);
    } catch (error) {
      return { text, error: error.name };
    }
  });
await report("any fetch", async () => {
  const fetch = verifying({ policy, command });
  const body = JSON.stringify({ model: "m", messages });
  const response = await fetch(new Request(`${honest}/v1/chat/completions`, { method: "POST", body }));
  return { text: (await response.json()).choices[0].message.content, claims: (await verdict(response)).claims };
});
