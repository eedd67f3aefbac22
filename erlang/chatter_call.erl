%% SPDX-License-Identifier: Apache-2.0
%% @doc Calls without a connection: requests are frames of their own kind, results are messages to
%% an alias of the caller. Outcomes are those of `erpc:call/5'.
%%
%% <pre>
%%   caller ── request ──► chatter_message_in ─spawn─► server ─spawn, monitor─► the function
%%      ▲                                                │  ◄── exits with its outcome
%%      └──────────────────── result ────────────────────┘
%% </pre>
-module(chatter_call).

-export([call/5, serve/1]).

%% Spawned.
-export([server/1, refuse/1, execute/4]).

-export_type([call/0]).

-type call() :: {ReplyTo :: reference(), module(), atom(), [term()],
                 Timeout :: non_neg_integer() | infinity}.

%% An atom cannot be a result: results are tuples.
-type outcome() :: {return, term()} | {throw, term()} | {exit, term()} | {error, term()}.

%% The longest timeout of `receive'.
-define(MAX_TIMEOUT, 16#ffffffff).

%% The most arguments that a function can have.
-define(MAX_ARITY, 255).

%% A result that cannot be sent because the caller's node is not to be reached is tried again so
%% often, after so long: by then that node is known to be down, or the caller to be told.
-define(REPLY_TRIES, 10).
-define(REPLY_RETRY_MS, 1000).

%% @doc See `chatter:call/5'.
-spec call(node(), module(), atom(), [term()], timeout() | {abs, integer()}) -> term().
call(Node, M, F, A, Timeout) when Node =:= node() ->
    erpc:call(Node, M, F, A, Timeout);
call(Node, M, F, A, Timeout) when is_atom(Node), is_atom(M), is_atom(F), is_list(A) ->
    Until = until(Timeout),
    Alias = alias([reply]),
    Frame = chatter_message_frame:encode(call, {Alias, M, F, A, left(Until)}, normal, {true, true}),
    Outcome = request(Node, Alias, Frame, Until, chatter_messages:channel(Node)),
    _ = unalias(Alias),
    receive {Alias, _} -> ok after 0 -> ok end,
    result(Outcome);
call(_, _, _, _, _) ->
    error({erpc, badarg}).

result({return, Value}) -> Value;
result({throw, Reason}) -> throw(Reason);
result({exit, Reason}) -> exit(Reason);
result({error, Reason}) -> error(Reason).

until(infinity) -> infinity;
until(Ms) when is_integer(Ms), Ms >= 0, Ms =< ?MAX_TIMEOUT -> now_ms() + Ms;
until({abs, At}) when is_integer(At) ->
    case At - now_ms() =< ?MAX_TIMEOUT of
        true -> At;
        false -> error({erpc, badarg})
    end;
until(_) -> error({erpc, badarg}).

left(infinity) -> infinity;
left(Until) -> max(0, Until - now_ms()).

%% ===== the caller =====

%% The anchor is monitored before the request leaves: whatever happens later is heard of.
request(Node, Alias, Frame, Until, {ok, {_, Out, Anchor} = Open}) ->
    Ref = monitor(process, Anchor),
    case chatter_send:post_to(Open, Frame, {infinity, Until, true}) of
        ok ->
            await(Node, Alias, {Ref, Out, Anchor}, Until);
        closed ->
            true = demonitor(Ref, [flush]),
            request(Node, Alias, Frame, Until, {stale, Out});
        Error ->
            true = demonitor(Ref, [flush]),
            failure(Error, Until)
    end;
request(Node, Alias, Frame, Until, None) ->
    Stale = case None of none -> none; {stale, Out} -> Out end,
    case chatter_messages:open(Node, Stale, left(Until)) of
        {ok, _} = Open -> request(Node, Alias, Frame, Until, Open);
        Error -> failure(Error, Until)
    end.

failure({error, too_large}, _) ->
    {error, {erpc, system_limit}};
failure(_, Until) ->
    case is_integer(Until) andalso now_ms() >= Until of
        true -> {error, {erpc, timeout}};
        false -> {error, {erpc, noconnection}}
    end.

await(Node, Alias, {Ref, Out, Anchor}, Until) ->
    receive
        {Alias, Outcome} ->
            true = demonitor(Ref, [flush]),
            Outcome;
        {'DOWN', Ref, process, _, Reason} when Reason =:= unused; Reason =:= noproc ->
            %% The channel was closed after the request had arrived, or the anchor was a former one.
            watch_again(Node, Alias, Out, Anchor, Until);
        {'DOWN', Ref, process, _, _} ->
            {error, {erpc, noconnection}}
    after left(Until) ->
        true = demonitor(Ref, [flush]),
        {error, {erpc, timeout}}
    end.

watch_again(Node, Alias, Out, Former, Until) ->
    Open = case chatter_messages:channel(Node) of
               {ok, {_, Out, Former}} -> chatter_messages:open(Node, Out, left(Until));
               {ok, _} = Other -> Other;
               none -> chatter_messages:open(Node, none, left(Until))
           end,
    case Open of
        {ok, {_, NewOut, Anchor}} ->
            await(Node, Alias, {monitor(process, Anchor), NewOut, Anchor}, Until);
        Error ->
            receive {Alias, Outcome} -> Outcome after 0 -> failure(Error, Until) end
    end.

%% ===== the node that is called =====

%% @doc Serves a call that has arrived. Returns at once.
-spec serve(call()) -> ok.
serve(Call) ->
    Serve = case chatter_message_stats:enter_call(chatter_node:setting(max_calls, 0)) of
                true -> server;
                false -> refuse
            end,
    _ = spawn(?MODULE, Serve, [Call]),
    ok.

%% @private
-spec server(call()) -> ok.
server({ReplyTo, M, F, A, Timeout}) ->
    try
        Until = until(Timeout),
        Tag = make_ref(),
        {_, Ref} = spawn_monitor(?MODULE, execute, [Tag, M, F, A]),
        receive
            {'DOWN', Ref, process, _, {Tag, Outcome}} -> reply(ReplyTo, Outcome, Until);
            {'DOWN', Ref, process, _, Reason} -> reply(ReplyTo, {exit, {signal, Reason}}, Until)
        end
    after
        chatter_message_stats:leave_call()
    end.

%% @private
-spec refuse(call()) -> ok.
refuse({ReplyTo, _, _, _, Timeout}) ->
    reply(ReplyTo, {error, {erpc, system_limit}}, until(Timeout)).

%% @private The function runs for the user of this node: what it prints appears here.
-spec execute(reference(), module(), atom(), [term()]) -> no_return().
execute(Tag, M, F, A) ->
    _ = case whereis(user) of
            undefined -> true;
            User -> group_leader(User, self())
        end,
    exit({Tag, try {return, apply(M, F, A)}
               catch
                   throw:Reason -> {throw, Reason};
                   exit:Reason -> {exit, {exception, Reason}};
                   error:Reason:Stack -> {error, exception(Reason, Stack, {M, F, A})}
               end}).

exception(system_limit, _, {_, _, A}) when length(A) > ?MAX_ARITY ->
    {erpc, system_limit};
exception(Reason, Stack, Called) ->
    {exception, Reason, trim(Stack, Called)}.

%% The stack without this module. Its last entry is the function that was called, which may have
%% left the stack by a last call.
trim(Stack, {M, F, A}) ->
    case lists:splitwith(fun(Entry) -> element(1, Entry) =/= ?MODULE end, Stack) of
        {Whole, []} -> Whole;
        {[], _} -> [{M, F, A, []}];
        {[{M, F, A, _}] = Only, _} -> Only;
        {Own, _} ->
            case lists:last(Own) of
                {M, F, Arity, _} when Arity =:= length(A) -> Own;
                _ -> Own ++ [{M, F, length(A), []} || is_proper(A)]
            end
    end.

is_proper(List) ->
    try length(List) >= 0 catch error:badarg -> false end.

%% A caller that has given up wants no result.
-spec reply(reference(), outcome(), integer() | infinity) -> ok.
reply(ReplyTo, Outcome, Until) ->
    Node = node(ReplyTo),
    Encode = fun(Result) ->
                     chatter_message_frame:encode(message, {ReplyTo, {ReplyTo, Result}}, normal,
                                                  {true, true})
             end,
    case reply(Node, Encode(Outcome), Until, ?REPLY_TRIES) of
        {error, too_large} ->
            _ = reply(Node, Encode({error, {erpc, system_limit}}), Until, ?REPLY_TRIES),
            ok;
        _ ->
            ok
    end.

reply(Node, Frame, Until, Tries) ->
    case chatter_send:post(Node, Frame, {infinity, Until, true}, chatter_messages:channel(Node)) of
        {error, Reason} when Reason =/= too_large, Tries > 1 ->
            case left(Until) of
                Left when Left > ?REPLY_RETRY_MS ->
                    receive after ?REPLY_RETRY_MS -> ok end,
                    reply(Node, Frame, Until, Tries - 1);
                _ ->
                    {error, Reason}
            end;
        Result ->
            Result
    end.

now_ms() ->
    erlang:monotonic_time(millisecond).
