// Asks a gateway through the official JavaScript clients of Claude and Ollama, and Vercel's AI SDK; prints what they understood as JSON.
// Arguments: the gateway's URL and the model.
import Anthropic from "@anthropic-ai/sdk";
import { createAnthropic } from "@ai-sdk/anthropic";
import { generateText, stepCountIs, streamText, tool } from "ai";
import { Ollama } from "ollama";
import { z } from "zod";

const [url, model] = process.argv.slice(2);
const messages = [{ role: "user", content: "How is the weather in Oslo?" }];
const schema = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const seen = {};

const claude = new Anthropic({ baseURL: url, apiKey: "none", maxRetries: 0 });
const tools = [{ name: "get_weather", description: "The weather in a city", input_schema: schema }];
const stream = claude.messages.stream({ model, max_tokens: 100, messages, tools });
const first = await stream.finalMessage();
seen.claude_call = first.content.filter((block) => block.type === "tool_use").map((block) => block.input);
const call = first.content.find((block) => block.type === "tool_use");
const turns = [
  ...messages,
  { role: "assistant", content: first.content },
  { role: "user", content: [{ type: "tool_result", tool_use_id: call.id, content: "rainy" }] },
];
const texts = [];
const second = claude.messages.stream({ model, max_tokens: 100, messages: turns, tools }).on("text", (text) => texts.push(text));
seen.claude_stop = (await second.finalMessage()).stop_reason;
seen.claude_text = texts.join("");
seen.claude_count = (await claude.messages.countTokens({ model, messages })).input_tokens;
seen.claude_models = [];
for await (const one of claude.models.list()) seen.claude_models.push(one.id);
seen.claude_error = await claude.messages
  .create({ model: "nope", max_tokens: 1, messages })
  .catch((error) => [error.constructor.name, Boolean(error.requestID)]);

const provider = createAnthropic({ baseURL: `${url}/v1`, apiKey: "none" });
const weather = tool({ description: "The weather", inputSchema: z.object({ city: z.string() }), execute: async () => "sunny" });
const options = { model: provider(model), prompt: "How is the weather?", tools: { get_weather: weather }, stopWhen: stepCountIs(3), maxRetries: 0 };
const whole = await generateText(options);
seen.vercel_text = whole.text;
seen.vercel_reason = whole.finishReason;
const streamed = streamText(options);
seen.vercel_stream = "";
for await (const text of streamed.textStream) seen.vercel_stream += text;
seen.vercel_usage = (await streamed.totalUsage).outputTokens > 0;

const ollama = new Ollama({ host: url });
const functions = [{ type: "function", function: { name: "get_weather", description: "The weather", parameters: schema } }];
seen.ollama_call = [];
for await (const part of await ollama.chat({ model, messages, tools: functions, stream: true })) {
  for (const one of part.message.tool_calls ?? []) seen.ollama_call.push(one.function.arguments);
}
const told = [...messages, { role: "tool", tool_name: "get_weather", content: "windy" }];
seen.ollama_text = (await ollama.chat({ model, messages: told })).message.content;
seen.ollama_models = (await ollama.list()).models.map((one) => one.name);
seen.ollama_running = (await ollama.ps()).models.length;
seen.ollama_shown = (await ollama.show({ model })).capabilities.includes("tools");
seen.ollama_pulled = (await ollama.pull({ model })).status;
seen.ollama_error = await ollama.chat({ model: "nope", messages }).catch((error) => error.message);
console.log(JSON.stringify(seen));
