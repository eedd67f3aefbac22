%% SPDX-License-Identifier: Apache-2.0
%% @doc Messages to many nodes, the side of Erlang: what is sent becomes bytes in the process that
%% sends; what arrives is decoded here, handed to the handler of its type and to subscribers.
%%
%% Handlers and subscriptions are in a table of `chatter_dist_sup', so a crash of this process ends
%% none of them.
-module(chatter_broadcast).
-behaviour(gen_server).

-export([new/0, start_link/0, own/0, tell/1, send/3, resolve/1, add_handler/1, remove_handler/1,
         subscribe/2, unsubscribe/1, figures/0]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

-export_type([net_id/0, target/0, targets/0, handler/0]).

-type net_id() :: {net_id, inet:ip_address(), inet:port_number()}.
%% A node by an address at which it takes links.

-type target() :: node() | net_id().

-type targets() :: all | {group, term()} | [target()].

-type handler() :: #{type := atom(),
                     extract_netids => fun((tuple()) -> [net_id()]),
                     encode_with => fun((tuple(), #{net_id() => non_neg_integer()}) -> binary()),
                     decode_with => fun((binary(), #{non_neg_integer() => net_id()}) ->
                                               {tuple(), binary()}),
                     dispatch => fun((tuple()) -> {ok, tuple()} | term())}.
%% What is done with messages of a type. `dispatch' may return a changed message of the type: it
%% travels on to the nodes behind this one.

%% Rows: {{handler, TypeText}, Handler}, {{subscriber, TypeText, Pid}, Type, Credit},
%% {{count, Key}, N}.
-define(TABLE, ?MODULE).

%% A message that is longer is encoded and sent on a dirty scheduler.
-define(LARGE, 65536).

%% While too much is under way, the sender tries again so often.
-define(RETRY_MS, 1).

%% In words: the messages of one decoding fit, and are dead when memory is next collected.
-define(HEAP, 32768).

%% After many messages at once the next ones are looked for so much later, without being told of
%% each packet: a scheduler that is woken for a packet spins for longer than the packet takes. Later
%% still after so many bytes, which take a good part of that time themselves.
-define(SOON_MS, 1).
-define(HEAVY, 16384).
-define(SOON_AFTER_HEAVY_MS, 2).

-define(MAX_TYPE, 255).

%% How long the control plane may take to answer.
-define(ANSWER_MS, 5000).

%% ===== for chatter and chatter_dist_sup =====

%% @doc Makes the table, which is the caller's.
-spec new() -> ok.
new() ->
    ?TABLE = ets:new(?TABLE, [named_table, public, ordered_set, {read_concurrency, true}]),
    ok.

%% @doc Starts the process.
-spec start_link() -> {ok, pid()} | {error, term()} | ignore.
start_link() ->
    Opts = [{spawn_opt, [{min_heap_size, ?HEAP}]}],
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], Opts).

%% @doc A native node has been started: this process takes what comes.
-spec own() -> ok.
own() ->
    gen_server:cast(?MODULE, own).

%% @doc Gives those who have subscribed to its tag a message of this node itself, as it is.
-spec tell(tuple()) -> ok.
tell(Msg) ->
    gen_server:cast(?MODULE, {tell, Msg}).

%% @doc Sends a message; see `chatter:broadcast/3'.
-spec send(targets(), tuple(), #{timeout => timeout()} | [{timeout, timeout()}]) ->
          ok | {error, not_started | too_large | timeout | no_group}.
send(Targets, Msg, Opts) when is_list(Opts) ->
    send(Targets, Msg, maps:from_list(Opts));
send(Targets, Msg, Opts) when tuple_size(Msg) > 1, is_atom(element(1, Msg)), is_map(Opts) ->
    true = map_size(Opts) =:= 0 orelse maps:keys(Opts) =:= [timeout],
    case chatter_nif:broadcast_small(Targets, Msg) of
        ok -> ok;
        _ -> send_any(Targets, Msg, Opts)
    end.

%% What is not small, or has to wait.
send_any(Targets, Msg, Opts) ->
    case resolve(Targets) of
        {error, _} = Error -> Error;
        To ->
            Type = atom_to_binary(element(1, Msg)),
            Body = encode(Msg),
            Send = if byte_size(Body) > ?LARGE -> fun chatter_nif:broadcast_send_large/3;
                      true -> fun chatter_nif:broadcast_send/3
                   end,
            Until = case maps:get(timeout, Opts, infinity) of
                        infinity -> infinity;
                        Ms -> erlang:monotonic_time(millisecond) + Ms
                    end,
            send(Send, To, Type, Body, Until)
    end.

send(Send, To, Type, Body, Until) ->
    case Send(To, Type, Body) of
        full ->
            case Until =/= infinity andalso erlang:monotonic_time(millisecond) >= Until of
                true -> {error, timeout};
                false ->
                    receive after ?RETRY_MS -> ok end,
                    send(Send, To, Type, Body, Until)
            end;
        Result -> Result
    end.

%% @doc The names of those that targets mean. A group is asked of `chatter_group' if that is there.
-spec resolve(targets()) -> all | [binary()] | {error, no_group | not_started}.
resolve(all) ->
    all;
resolve({group, Name}) ->
    case code:ensure_loaded(chatter_group) of
        {module, Group} ->
            case Group:members(Name, [nodes]) of
                {error, _} = Error -> Error;
                Nodes -> resolve(Nodes)
            end;
        {error, _} -> {error, no_group}
    end;
resolve(Targets) when is_list(Targets) ->
    case lists:any(fun is_tuple/1, Targets) of
        false -> [atom_to_binary(Node) || Node <- Targets];
        true ->
            Known = net_ids(),
            lists:append([name(Target, Known) || Target <- Targets])
    end.

name({net_id, _, _} = Id, Known) -> [Name || #{Id := Name} <- [Known]];
name(Node, _) -> [atom_to_binary(Node)].

net_ids() ->
    Ref = make_ref(),
    Nodes = case chatter_nif:addresses(Ref) of
                true -> receive {Ref, Answer} -> Answer after ?ANSWER_MS -> [] end;
                false -> []
            end,
    maps:from_list([{{net_id, chatter_broadcast_bytes:ip(Ip), Port}, Name}
                    || {Name, At} <- Nodes, Name =/= <<>>, {Ip, Port} <- At]).

%% @doc Adds or replaces the handler of a type.
-spec add_handler(handler()) -> ok | {error, badarg}.
add_handler(#{type := Type} = Handler) when is_atom(Type) ->
    Arities = #{extract_netids => 1, encode_with => 2, decode_with => 2, dispatch => 1},
    Sound = fun(type, _) -> true;
               (Key, F) -> is_map_key(Key, Arities)
                               andalso is_function(F, maps:get(Key, Arities))
            end,
    case maps:filter(fun(Key, F) -> not Sound(Key, F) end, Handler) of
        Wrong when map_size(Wrong) =:= 0 ->
            gen_server:call(?MODULE, {add_handler, type_text(Type), Handler}, infinity);
        _ -> {error, badarg}
    end;
add_handler(_) ->
    {error, badarg}.

%% @doc Removes the handler of a type.
-spec remove_handler(atom()) -> ok.
remove_handler(Type) ->
    gen_server:call(?MODULE, {remove_handler, type_text(Type)}, infinity).

%% @doc So many more messages of a type for the calling process.
-spec subscribe(atom(), pos_integer()) -> ok.
subscribe(Type, Credit) when is_atom(Type), is_integer(Credit), Credit > 0 ->
    gen_server:call(?MODULE, {subscribe, Type, Credit, self()}, infinity).

%% @doc No more messages of a type for the calling process.
-spec unsubscribe(atom()) -> ok.
unsubscribe(Type) when is_atom(Type) ->
    gen_server:call(?MODULE, {unsubscribe, Type, self()}, infinity).

%% @doc Counts since the start.
-spec figures() -> #{atom() => non_neg_integer()}.
figures() ->
    Zero = maps:from_keys([unknown, undecodable, handler_crashes, subscriber_drops], 0),
    Own = maps:from_list([{Key, N} || [Key, N] <- ets:match(?TABLE, {{count, '$1'}, '$2'})]),
    maps:merge(maps:merge(Zero, Own), maps:from_list(chatter_nif:broadcast_figures())).

type_text(Type) ->
    Text = atom_to_binary(Type),
    true = byte_size(Text) =< ?MAX_TYPE,
    Text.

encode(Msg) ->
    chatter_broadcast_bytes:encode(Msg, handler(atom_to_binary(element(1, Msg)))).

handler(Type) ->
    case ets:lookup(?TABLE, {handler, Type}) of
        [{_, Handler}] -> Handler;
        [] -> none
    end.

%% ===== gen_server =====

%% @private
-spec init([]) -> {ok, map()}.
init([]) ->
    Pids = lists:usort(lists:append(ets:match(?TABLE, {{subscriber, '_', '$1'}, '_', '_'}))),
    ok = take_over(),
    self() ! {chatter_broadcasts},
    {ok, maps:from_list([{Pid, monitor(process, Pid)} || Pid <- Pids])}.

%% @private
-spec handle_call(term(), gen_server:from(), map()) -> {reply, ok, map()}.
handle_call({add_handler, Type, Handler}, _From, State) ->
    true = ets:insert(?TABLE, {{handler, Type}, Handler}),
    ok = tell_handled(),
    {reply, ok, State};
handle_call({remove_handler, Type}, _From, State) ->
    true = ets:delete(?TABLE, {handler, Type}),
    ok = tell_handled(),
    {reply, ok, State};
handle_call({subscribe, Type, More, Pid}, _From, State) ->
    Key = {subscriber, type_text(Type), Pid},
    Credit = case ets:lookup(?TABLE, Key) of
                 [{_, _, Left}] -> Left + More;
                 [] -> More
             end,
    true = ets:insert(?TABLE, {Key, Type, Credit}),
    Monitored = case State of
                    #{Pid := _} -> State;
                    #{} -> State#{Pid => monitor(process, Pid)}
                end,
    {reply, ok, Monitored};
handle_call({unsubscribe, Type, Pid}, _From, State) ->
    true = ets:delete(?TABLE, {subscriber, type_text(Type), Pid}),
    case ets:match(?TABLE, {{subscriber, '_', Pid}, '_', '_'}, 1) of
        '$end_of_table' -> {reply, ok, forget(Pid, State)};
        _ -> {reply, ok, State}
    end.

%% @private
-spec handle_cast(term(), map()) -> {noreply, map()}.
handle_cast({tell, Msg}, State) ->
    Type = atom_to_binary(element(1, Msg)),
    ok = keep(Type, [give(Subscriber, Msg) || Subscriber <- subscribers(Type)]),
    {noreply, State};
handle_cast(own, State) ->
    %% The native node was started, or started again.
    ok = take_over(),
    self() ! {chatter_broadcasts},
    {noreply, State}.

%% @private
-spec handle_info(term(), map()) -> {noreply, map()}.
handle_info({chatter_broadcasts}, State) ->
    Messages = case chatter_nif:broadcast_fetch() of
                   {Some, idle} -> Some;
                   {Some, more} -> self() ! {chatter_broadcasts}, Some;
                   {Some, soon} ->
                       _ = erlang:send_after(soon_ms(Some), self(), {chatter_broadcasts}),
                       Some;
                   {[], large} ->
                       {Some, _} = chatter_nif:broadcast_fetch_large(),
                       self() ! {chatter_broadcasts},
                       Some
               end,
    ok = deliver_all(Messages),
    {noreply, State};
handle_info({'DOWN', _, process, Pid, _}, State) ->
    true = ets:match_delete(?TABLE, {{subscriber, '_', Pid}, '_', '_'}),
    {noreply, maps:remove(Pid, State)};
handle_info(_, State) ->
    {noreply, State}.

soon_ms(Messages) ->
    case lists:sum([byte_size(Bytes) || {_, _, Bytes, _} <- Messages]) of
        Sum when Sum >= ?HEAVY -> ?SOON_AFTER_HEAVY_MS;
        _ -> ?SOON_MS
    end.

forget(Pid, State) ->
    case maps:take(Pid, State) of
        {Ref, Rest} -> demonitor(Ref, [flush]), Rest;
        error -> State
    end.

take_over() ->
    ok = chatter_nif:broadcast_owner(self()),
    tell_handled().

tell_handled() ->
    Handlers = ets:match(?TABLE, {{handler, '$1'}, '$2'}),
    Encoded = [Type || [_, #{type := Type, encode_with := _}] <- Handlers],
    ok = chatter_nif:broadcast_encoded(Encoded),
    chatter_nif:broadcast_handled([Type || [Type, #{dispatch := _}] <- Handlers]).

%% ===== messages =====

%% Those of one type that follow each other share what is looked up for the type. Nobody subscribes
%% or adds a handler meanwhile: that is done by this process.
deliver_all([]) ->
    ok;
deliver_all([{Origin, Type, Run, Count} | Rest]) when is_integer(Count) ->
    Handler = handler(Type),
    case subscribers(Type) of
        [] when Handler =:= none -> ok = count(unknown, Count);
        Before ->
            {After, _} = deliver_run(Origin, Type, Run, Handler, Before),
            ok = keep(Type, After)
    end,
    deliver_all(Rest);
deliver_all([{_, Type, _, _} | _] = Messages) ->
    Alike = fun({_, Other, _, Ticket}) -> Other =:= Type andalso not is_integer(Ticket) end,
    {Same, Rest} = lists:splitwith(Alike, Messages),
    Handler = handler(Type),
    case subscribers(Type) of
        [] when Handler =:= none ->
            ok = count(unknown, length(Same)),
            lists:foreach(fun({_, _, _, Ticket}) -> done(Ticket, unchanged) end, Same);
        Before ->
            {After, _} = lists:foldl(fun(Message, Acc) -> deliver(Message, Handler, Acc) end,
                                     {Before, {none, none}}, Same),
            ok = keep(Type, After)
    end,
    deliver_all(Rest).

%% With the credit that each has.
subscribers(Type) ->
    ets:match(?TABLE, {{subscriber, Type, '$1'}, '$2', '$3'}).

keep(Type, Subscribers) ->
    [true = ets:update_element(?TABLE, {subscriber, Type, Pid}, {3, Credit})
     || [Pid, _, Credit] <- Subscribers],
    ok.

deliver({Origin, Type, Bytes, Ticket}, Handler, {Subscribers, Node}) ->
    try chatter_broadcast_bytes:decode(Type, Bytes, Handler) of
        Msg ->
            done(Ticket, dispatch(Handler, Type, Msg)),
            {_, From} = Known = node_of(Origin, Node),
            Told = {chatter_broadcast, From, Msg},
            {[give(Subscriber, Told) || Subscriber <- Subscribers], Known}
    catch
        _:_ ->
            ok = count(undecodable, 1),
            done(Ticket, unchanged),
            {Subscribers, Node}
    end.

%% Many of one origin and type. Where no handler has a part in it, the native side makes the terms.
deliver_run(Origin, Type, Run, Handler, Subscribers) ->
    Plain = Handler =:= none orelse not (is_map_key(decode_with, Handler)
                                         orelse is_map_key(dispatch, Handler)),
    case Subscribers of
        [[_, Atom, _] | _] when Plain ->
            native(Origin, Type, Atom, Run, 0, {Subscribers, {none, none}});
        _ ->
            own(Origin, Type, Run, Handler, {Subscribers, {none, none}})
    end.

native(_, _, _, Run, At, Acc) when At =:= byte_size(Run) ->
    Acc;
native(Origin, Type, Atom, Run, At, {Subscribers, Node} = Acc) ->
    case chatter_nif:broadcast_decode(Atom, Run, At) of
        {_, _, At} ->
            <<_:At/binary, Left/binary>> = Run,
            {Body, Rest} = chatter_broadcast_bytes:first(Left),
            After = deliver({Origin, Type, Body, none}, none, Acc),
            native(Origin, Type, Atom, Run, byte_size(Run) - byte_size(Rest), After);
        {Msgs, Bad, Next} ->
            _ = [ok = count(undecodable, Bad) || Bad > 0],
            {_, From} = Known = node_of(Origin, Node),
            After = [give_all(Subscriber, From, Msgs) || Subscriber <- Subscribers],
            native(Origin, Type, Atom, Run, Next, {After, Known})
    end.

own(_, _, <<>>, _, Acc) ->
    Acc;
own(Origin, Type, Run, Handler, Acc) ->
    {Body, Rest} = chatter_broadcast_bytes:first(Run),
    own(Origin, Type, Rest, Handler, deliver({Origin, Type, Body, none}, Handler, Acc)).

done(none, _) -> ok;
done({Ticket, Seq}, unchanged) -> chatter_nif:broadcast_dispatched(Ticket, Seq, unchanged);
done({Ticket, Seq}, {changed, Msg}) ->
    Body = try encode(Msg) catch _:_ -> ok = count(handler_crashes, 1), unchanged end,
    chatter_nif:broadcast_dispatched(Ticket, Seq, Body).

dispatch(#{dispatch := Dispatch}, Type, Msg) ->
    try Dispatch(Msg) of
        {ok, Msg} -> unchanged;
        {ok, Changed} when is_tuple(Changed), tuple_size(Changed) > 1 ->
            case element(1, Changed) =:= element(1, Msg) of
                true -> {changed, Changed};
                false -> unchanged
            end;
        _ -> unchanged
    catch
        Class:Reason:Stack ->
            ok = count(handler_crashes, 1),
            logger:error("chatter: the handler of broadcasts of type ~ts failed: ~p",
                         [Type, {Class, Reason, Stack}]),
            unchanged
    end;
dispatch(_, _, _) ->
    unchanged.

%% The subscription as it is then.
give([_, _, 0] = Subscriber, _Msg) ->
    ok = count(subscriber_drops, 1),
    Subscriber;
give([Pid, Atom, Credit], Msg) ->
    Pid ! Msg,
    _ = [Pid ! {chatter_broadcast_passive, Atom} || Credit =:= 1],
    [Pid, Atom, Credit - 1].

give_all([Pid, Atom, Credit], From, Msgs) ->
    [Pid, Atom, give_all(Pid, Atom, Credit, From, Msgs)].

give_all(_, _, Credit, _, []) ->
    Credit;
give_all(_, _, 0, _, Msgs) ->
    ok = count(subscriber_drops, length(Msgs)),
    0;
give_all(Pid, Atom, 1, From, [Msg | Rest]) ->
    Pid ! {chatter_broadcast, From, Msg},
    Pid ! {chatter_broadcast_passive, Atom},
    give_all(Pid, Atom, 0, From, Rest);
give_all(Pid, Atom, Credit, From, [Msg | Rest]) ->
    Pid ! {chatter_broadcast, From, Msg},
    give_all(Pid, Atom, Credit - 1, From, Rest).

%% With the origin of the message before, and what it is called. A node without a name is shown by
%% its id.
node_of(Origin, {Origin, _} = Known) -> Known;
node_of(Origin, _) ->
    case binary:match(Origin, <<"@">>) of
        nomatch -> {Origin, Origin};
        _ -> {Origin, binary_to_atom(Origin)}
    end.

count(Key, N) ->
    _ = ets:update_counter(?TABLE, {count, Key}, N, {{count, Key}, 0}),
    ok.
